"""M-BEIR as published: 16 tasks of 10 data sets, with local pools and one union (global) pool.

Wei et al., UniIR, arXiv 2311.17136; files: TIGER-Lab/M-BEIR.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
    lines,
    one_of,
    qrels_rows,
    text_of,
)

_DATASETS = (
    "visualnews", "fashion200k", "webqa", "edis", "nights", "oven", "infoseek", "fashioniq",
    "cirr", "mscoco",
)  # fmt: skip
TASK_NAMES = (
    "visualnews_task0", "mscoco_task0", "fashion200k_task0", "webqa_task1", "edis_task2",
    "webqa_task2", "visualnews_task3", "mscoco_task3", "fashion200k_task3", "nights_task4",
    "oven_task6", "infoseek_task6", "fashioniq_task7", "cirr_task7", "oven_task8",
    "infoseek_task8",
)  # fmt: skip
_AT_10 = {"fashion200k_task0", "fashion200k_task3", "fashioniq_task7"}
_TEXT, _IMAGE, _BOTH = Modality.TEXT, Modality.IMAGE, Modality.IMAGE_TEXT
_SHAPES = {
    0: (_TEXT, _IMAGE),
    1: (_TEXT, _TEXT),
    2: (_TEXT, _BOTH),
    3: (_IMAGE, _TEXT),
    4: (_IMAGE, _IMAGE),
    6: (_BOTH, _TEXT),
    7: (_BOTH, _IMAGE),
    8: (_BOTH, _BOTH),
}
"""Modality of queries and of candidates, by number of the kind of task."""
_MODALITIES = {"text": _TEXT, "image": _IMAGE, "image,text": _BOTH, "text,image": _BOTH}
_POOLS = {
    (str(_DATASETS.index(name.partition("_")[0])), _SHAPES[int(name[-1])][1]): name
    for name in TASK_NAMES
}
"""Task by data set and modality of its candidates."""
PROMPTS = ("1", "2", "3", "4", "random")


def format_string(text: str) -> str:
    """Return a text as UniIR sends it: trimmed, with a capital first and an end of sentence."""
    trimmed = text.replace("\r", "").strip().strip('"')
    if not trimmed:
        return ""
    capital = trimmed[0].upper() + trimmed[1:]
    return capital if capital.endswith((".", "?", "!")) else capital + "."


@dataclass(frozen=True)
class MBeir:
    """A folder of M-BEIR; a part of it will do.

    Of four prompts UniIR draws one at random for each query, which makes figures differ from run to
    run; here it is the first unless asked otherwise, and `random` depends on seed and query alone.
    """

    root: Path
    split: str = "test"
    only: tuple[str, ...] = ()
    """Names of tasks; empty means all that the folder has."""
    prompt: str = "1"
    seed: int = 0
    unions: bool = True
    """Whether the union pool is wanted, not only the tasks' own."""
    _prompts: dict[tuple[str, Modality, Modality], tuple[str, ...]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Look which tasks are there, and read the prompts."""
        unknown = sorted(set(self.only) - set(TASK_NAMES))
        if unknown:
            raise DatasetError(
                f"M-BEIR has no task {', '.join(unknown)}; it has {' '.join(TASK_NAMES)}"
            )
        missing = [name for name in self.only if not self._query_file(name)]
        if missing or not self.tasks:
            asked = ", ".join(missing) or "any task"
            raise DatasetError(f"{self.root} has no {self.split} queries of {asked}")
        self._prompts.update(_read_prompts(self.root / "instructions/query_instructions.tsv"))
        for task in self.tasks:
            self._prompts_of(task)

    @property
    def name(self) -> str:
        """Name of the data set and its split."""
        return f"mbeir-{self.split}"

    @property
    def tasks(self) -> Sequence[Task]:
        """Those of the 16 tasks that are asked for and there, in the order of the publication."""
        names = self.only or tuple(name for name in TASK_NAMES if self._query_file(name))
        return [_task(name) for name in sorted(names, key=TASK_NAMES.index)]

    @property
    def notes(self) -> Sequence[str]:
        """Which prompt and which pools."""
        which = (
            f"one of four prompts at random, seed {self.seed}, as UniIR draws them"
            if self.prompt == "random"
            else f"prompt {self.prompt} of each task; UniIR draws one of four at random"
        )
        pool = "the file of the global pool"
        if self._global_pool is None:
            pool = f"made of the local pools of these {len(self.tasks)} tasks, not M-BEIR's global"
        return (
            f"Instructions: {which}.",
            f"Union pool: {pool}." if self.unions else "Union pool: not asked for.",
            "OVEN and InfoSeek judge candidates of each other's pools relevant, which no local pool"
            " of theirs holds.",
        )

    @property
    def pool_files(self) -> Sequence[Path]:
        """The union's file, else those of the tasks."""
        if self._global_pool is not None:
            return (self._global_pool,)
        return list(dict.fromkeys(self._local_pool(task.name) for task in self.tasks))

    def pool(self) -> Iterator[PoolRow | Broken]:
        """Yield the candidates; which local pool is theirs follows from data set and modality."""
        for path in self.pool_files:
            for row in json_rows(path):
                yield row if isinstance(row, Broken) else self._pool_row(row)

    def queries(self, task: Task) -> Iterator[Query | Broken]:
        """Yield the queries, with the instruction of their data set, modality and target."""
        path = self._query_file(task.name)
        assert path is not None
        prompts = self._prompts_of(task)
        for row in json_rows(path):
            yield row if isinstance(row, Broken) else self._query(row, prompts)

    def judgements(self, task: Task) -> Iterator[Judgement | Broken]:
        """Yield the five-column qrels, which union and local pools share."""
        folder, stem = self.root / "qrels" / self.split, f"mbeir_{task.name}"
        return qrels_rows(one_of(folder / f"{stem}_{self.split}_qrels.txt"))

    def _query_file(self, name: str) -> Path | None:
        try:
            return one_of(self.root / "query" / self.split / f"mbeir_{name}_{self.split}.jsonl")
        except DatasetError:
            return None

    def _local_pool(self, name: str) -> Path:
        folder = self.root / "cand_pool/local"
        stems = (f"mbeir_{name}_{self.split}", f"mbeir_{name}")
        return one_of(*(folder / f"{stem}_cand_pool.jsonl" for stem in stems))

    @property
    def _global_pool(self) -> Path | None:
        if not self.unions:
            return None
        try:
            folder = self.root / "cand_pool/global"
            return one_of(folder / f"mbeir_union_{self.split}_cand_pool.jsonl")
        except DatasetError:
            return None

    def _pool_row(self, row: Row) -> PoolRow | Broken:
        try:
            did = checked_id(row.values.get("did"))
            text = format_string(text_of(row.values.get("txt")))
            image = self._picture(row.values.get("img_path"))
            pool = _pool_of(did, row.values.get("modality"))
        except ValueError as error:
            return Broken(row.where, str(error))
        if not text and image is None:
            return Broken(row.where, "has neither txt nor img_path")
        return PoolRow(did, text, image, (pool,), row.where)

    def _query(self, row: Row, prompts: tuple[str, ...]) -> Query | Broken:
        try:
            qid = checked_id(row.values.get("qid"))
        except ValueError as error:
            return Broken(row.where, str(error))
        text = format_string(text_of(row.values.get("query_txt")))
        image = self._picture(row.values.get("query_img_path"))
        if not text and image is None:
            return Broken(row.where, "has neither query_txt nor query_img_path")
        return Query(qid, text, image, row.where, self._prompt_for(qid, prompts))

    def _picture(self, value: object) -> Path | None:
        name = text_of(value)
        return self.root / name if name else None

    def _prompts_of(self, task: Task) -> tuple[str, ...]:
        query, wanted = _SHAPES[task.number]
        number = str(_DATASETS.index(task.name.partition("_")[0]))
        prompts = self._prompts.get((number, query, wanted), ())
        if not prompts or (self.prompt != "random" and int(self.prompt) > len(prompts)):
            key = f"data set {number}, {query.value} to {wanted.value}"
            file = self.root / "instructions/query_instructions.tsv"
            raise DatasetError(f"{file} has no prompt {self.prompt} for {task.name} ({key})")
        return prompts

    def _prompt_for(self, qid: str, prompts: tuple[str, ...]) -> str:
        if self.prompt == "random":
            return random.Random(f"{self.seed}:{qid}").choice(prompts)
        return prompts[int(self.prompt) - 1]


def _task(name: str) -> Task:
    number = int(name[-1])
    cuts = (10, 20, 50) if name in _AT_10 else (1, 5, 10)
    best = 10 if name in _AT_10 else 5
    metrics = (*(f"hit@{k}" for k in cuts), f"recall@{best}", "mrr@10", "ndcg@10", "mismatch")
    return Task(name, name, f"hit@{best}", metrics, _SHAPES[number][1], number)


def _pool_of(did: str, modality: object) -> str:
    """Return the task whose local pool holds a candidate.

    Each data set has at most one pool of each modality, and the union is made of exactly these.

    Raises:
        ValueError: no pool is of this kind.
    """
    kind = _MODALITIES.get(str(modality).replace(" ", ""))
    if kind is None:
        raise ValueError(f"has the modality {modality!r}, which is not known")
    number = did.partition(":")[0]
    if (number, kind) not in _POOLS:
        raise ValueError(f"is {kind.value} of data set {number!r}, of which M-BEIR has no pool")
    return _POOLS[number, kind]


def _read_prompts(path: Path) -> dict[tuple[str, Modality, Modality], tuple[str, ...]]:
    """Return the prompts by data set, modality of the query and of the candidates."""
    found = {}
    rows = lines(one_of(path))
    next(rows, None)  # the names of the columns
    for where, line in rows:
        query, wanted, _, number, *prompts = (*line.split("\t"), "", "", "", "")
        if query not in _MODALITIES or wanted not in _MODALITIES:
            raise DatasetError(f"{where} names a modality that is not known")
        key = number.strip(), _MODALITIES[query], _MODALITIES[wanted]
        found[key] = tuple(format_string(text_of(one)) for one in prompts if text_of(one))
    return found
