"""BEIR's format: `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv`, plain or gzipped.

Thakur et al., NeurIPS 2021 (datasets and benchmarks), arXiv 2104.08663.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmesh.content import Modality
from mmesh.evaluation.datasets.dataset import Broken, Judgement, PoolRow, Query, Task
from mmesh.evaluation.datasets.rows import (
    Row,
    checked_id,
    json_rows,
    judgement,
    lines,
    one_of,
    plain_name,
    text_of,
)

METRICS = ("ndcg@10", "recall@10", "recall@100", "mrr@10", "hit@1")


@dataclass(frozen=True)
class Beir:
    """A folder of BEIR."""

    root: Path
    split: str = "test"
    instruction: str = ""

    def __post_init__(self) -> None:
        """Fail now when a file is not there."""
        _ = self.pool_files, self._qrels, one_of(self.root / "queries.jsonl")

    @property
    def name(self) -> str:
        """Name of the data set and its split."""
        plain = plain_name(self.root)
        return f"beir-{plain}-{self.split}"

    @property
    def tasks(self) -> Sequence[Task]:
        """One task."""
        return [Task(self.name, "corpus", "ndcg@10", METRICS, Modality.TEXT, 1)]

    @property
    def notes(self) -> Sequence[str]:
        """What the figures mean."""
        return (
            f"Instruction: {self.instruction or 'none'}.",
            "Title and text of a candidate are joined by a space; a candidate with the id of the"
            " query is taken out of its hits, as in BEIR's own code.",
        )

    @property
    def unions(self) -> bool:
        """No: there is one pool."""
        return False

    @property
    def pool_files(self) -> Sequence[Path]:
        """The corpus."""
        return (one_of(self.root / "corpus.jsonl"),)

    @property
    def _qrels(self) -> Path:
        return one_of(self.root / "qrels" / f"{self.split}.tsv")

    def pool(self) -> Iterator[PoolRow | Broken]:
        """Yield the corpus."""
        for row in json_rows(self.pool_files[0]):
            yield row if isinstance(row, Broken) else _pool_row(row)

    def queries(self, task: Task) -> Iterator[Query | Broken]:
        """Yield the queries that the split judges."""
        judged = {one.query for one in self.judgements(task) if isinstance(one, Judgement)}
        for row in json_rows(one_of(self.root / "queries.jsonl")):
            found = row if isinstance(row, Broken) else self._query(row)
            if isinstance(found, Broken) or found.id in judged:
                yield found

    def _query(self, row: Row) -> Query | Broken:
        try:
            name = checked_id(row.values.get("_id"))
        except ValueError as error:
            return Broken(row.where, str(error))
        text = text_of(row.values.get("text"))
        if not text:
            return Broken(row.where, "has no text")
        return Query(name, text, None, row.where, self.instruction, excluded=(name,))

    def judgements(self, task: Task) -> Iterator[Judgement | Broken]:
        """Yield the rows `query-id corpus-id score` after the names of the columns."""
        for number, (where, line) in enumerate(lines(self._qrels)):
            parts = line.split("\t")
            if number == 0 and not parts[-1].strip().lstrip("-").isdecimal():
                continue
            if len(parts) != 3:
                yield Broken(where, f"has {len(parts)} columns; query, candidate and score are due")
                continue
            yield judgement(where, *(part.strip() for part in parts))


def _pool_row(row: Row) -> PoolRow | Broken:
    try:
        name = checked_id(row.values.get("_id"))
    except ValueError as error:
        return Broken(row.where, str(error))
    title, body = text_of(row.values.get("title")), text_of(row.values.get("text"))
    text = f"{title} {body}".strip()
    if not text:
        return Broken(row.where, "has neither title nor text")
    return PoolRow(name, text, None, ("corpus",), row.where)
