"""Our own format, for data of one's own: `pool.jsonl` and `queries.jsonl`, as `mmesh ingest` reads.

    pool.jsonl     {"id": "c1", "image": "cat.jpg", "pool": "animals"}
                   {"id": "c2", "text": "a cat on a sofa", "pool": "animals"}
    queries.jsonl  {"id": "q1", "text": "sleeping pets", "instruction": "Find a picture.",
                    "target": "image", "relevant": ["c1"], "task": "pets"}

Everything but an id and content is optional. `relevant` is a list of ids, or an object of ids and
grades; a file `qrels.tsv` or `qrels.txt` (query, 0, candidate, grade) does as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from mmesh.content import Modality
from mmesh.evaluation.datasets.dataset import (
    Broken,
    DatasetError,
    Judgement,
    PoolRow,
    Query,
    Task,
)
from mmesh.evaluation.datasets.rows import (
    Row,
    checked_id,
    json_rows,
    one_of,
    plain_name,
    qrels_rows,
    text_of,
)

METRICS = ("hit@1", "hit@5", "hit@10", "recall@10", "mrr@10", "ndcg@10", "mismatch")
DEFAULT = "all"
_IN_NAMES = " !#$&'()+,;=@[]{}~"
_LONGEST_NAME = 100


@dataclass(frozen=True)
class Own:
    """A folder with `pool.jsonl` and `queries.jsonl`."""

    root: Path
    headline: str = "hit@10"
    instruction: str = ""
    """For queries without one of their own."""

    def __post_init__(self) -> None:
        """Fail now when a file is not there or no query is in it."""
        _ = self.pool_files
        if not self.tasks:
            raise DatasetError(f"{self._queries} holds no query")

    @property
    def name(self) -> str:
        """Name of the folder."""
        return plain_name(self.root) or "own"

    @cached_property
    def tasks(self) -> Sequence[Task]:
        """The tasks that queries name, in order of appearance; their pool is that of their name."""
        named: dict[str, None] = {}
        for row in json_rows(self._queries):
            if isinstance(row, Row):
                named[str(row.values.get("task") or DEFAULT)] = None
        metrics = tuple(dict.fromkeys((*METRICS, self.headline)))
        return [Task(_file_name(name), name, self.headline, metrics) for name in named]

    @property
    def notes(self) -> Sequence[str]:
        """What the figures mean."""
        said = f"Instruction of queries without one of their own: {self.instruction}"
        hit = "hit@k is 1 when any relevant candidate is among the first k."
        return (hit, said) if self.instruction else (hit,)

    @property
    def unions(self) -> bool:
        """Whether there are several tasks."""
        return len(self.tasks) > 1

    @property
    def pool_files(self) -> Sequence[Path]:
        """The pool."""
        return (one_of(self.root / "pool.jsonl"),)

    @property
    def _queries(self) -> Path:
        return one_of(self.root / "queries.jsonl")

    def pool(self) -> Iterator[PoolRow | Broken]:
        """Yield the candidates; without `pool` one belongs to the tasks' default pool."""
        for row in json_rows(self.pool_files[0]):
            yield row if isinstance(row, Broken) else self._pool_row(row)

    def _pool_row(self, row: Row) -> PoolRow | Broken:
        try:
            name = checked_id(row.values.get("id"))
            text, image = _content(row, self.root)
        except ValueError as error:
            return Broken(row.where, str(error))
        pools = row.values.get("pool") or DEFAULT
        named = tuple(map(str, pools)) if isinstance(pools, list) else (str(pools),)
        return PoolRow(name, text, image, named, row.where)

    def queries(self, task: Task) -> Iterator[Query | Broken]:
        """Yield the queries of a task; rows that cannot be read belong to the first."""
        for row in json_rows(self._queries):
            if isinstance(row, Row) and str(row.values.get("task") or DEFAULT) == task.pool:
                yield query_of(row, self.root, self.instruction)
            elif isinstance(row, Broken) and task == self.tasks[0]:
                yield row

    def judgements(self, task: Task) -> Iterator[Judgement | Broken]:
        """Yield what the queries name as relevant, then the qrels file if there is one."""
        mine: set[str] = set()
        for row in json_rows(self._queries):
            if isinstance(row, Row) and str(row.values.get("task") or DEFAULT) == task.pool:
                mine.add(str(row.values.get("id")))
                yield from relevant_of(row)
        files = [self.root / name for name in ("qrels.tsv", "qrels.txt")]
        for one in (one for path in files if path.is_file() for one in qrels_rows(path)):
            if len(self.tasks) == 1 or isinstance(one, Broken) or one.query in mine:
                yield one


def _file_name(task: str) -> str:
    """Return the name of a task, percent-encoded where no file can be called so."""
    name = quote(task, safe=_IN_NAMES, errors="replace")
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(task.encode(errors="replace")).hexdigest()[:16]
    return f"{name[: _LONGEST_NAME - 17]}-{digest}"


def query_of(row: Row, root: Path, instruction: str = "") -> Query | Broken:
    """Return the query of a row; `instruction` is for one without an instruction of its own."""
    try:
        name = checked_id(row.values.get("id"))
        text, image = _content(row, root)
        target = row.values.get("target")
        wanted = Modality(target) if target and target != "any" else None
    except ValueError as error:
        return Broken(row.where, str(error))
    own = text_of(row.values.get("instruction")) or instruction
    return Query(name, text, image, row.where, own, wanted)


def _content(row: Row, root: Path) -> tuple[str, Path | None]:
    text, image = text_of(row.values.get("text")), text_of(row.values.get("image"))
    if not text and not image:
        raise ValueError("has neither text nor image")
    return text, root / image if image else None


def relevant_of(row: Row) -> Iterator[Judgement | Broken]:
    """Yield the judgements that a row of queries names."""
    relevant, query = row.values.get("relevant") or {}, str(row.values.get("id"))
    graded = relevant
    if isinstance(relevant, list) and all(isinstance(one, str | int) for one in relevant):
        graded = dict.fromkeys(relevant, 1)
    if not isinstance(graded, dict) or not all(isinstance(g, int) for g in graded.values()):
        yield Broken(row.where, "`relevant` is neither a list of ids nor an object of grades")
        return
    for candidate, grade in graded.items():
        yield Judgement(query, str(candidate), grade, row.where)
