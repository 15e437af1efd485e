"""FashionIQ: fashion pictures and notes of style, by three protocols that are often mixed up.

Wu et al., CVPR 2021, arXiv 1905.12794; files: XiaoxiaoGuo/fashion-iq. The protocols differ in what
a query is searched among:

- `original`: the pictures of its category's split (`image_splits`);
- `val`: only those that some caption of its category and split names (Chen et al., VAL, CVPR 2020);
- `mbeir`: all pictures of all categories and splits, as M-BEIR pools them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmesh.content import Modality
from mmesh.evaluation.datasets.dataset import Broken, DatasetError, Judgement, PoolRow, Query, Task
from mmesh.evaluation.datasets.mbeir import format_string
from mmesh.evaluation.datasets.rows import Json, json_file, json_list, text_of

CATEGORIES, SPLITS = ("dress", "shirt", "toptee"), ("train", "val", "test")
PROTOCOLS = ("original", "val", "mbeir")
INSTRUCTION = "Find a fashion image that aligns with the reference image and style note."


@dataclass(frozen=True)
class FashionIQ:
    """The folder of the repository, with the pictures in `images`."""

    root: Path
    split: str = "val"
    instruction: str = INSTRUCTION

    def __post_init__(self) -> None:
        """Fail now when a category is not there."""
        for category in CATEGORIES:
            for path in (self._captions(category), self._listing(category, self.split)):
                if not path.is_file():
                    raise DatasetError(f"{path} is missing")

    @property
    def name(self) -> str:
        """Name of the data set and its split."""
        return f"fashioniq-{self.split}"

    @property
    def tasks(self) -> Sequence[Task]:
        """Each category by each protocol; publications print the mean of a protocol."""
        metrics = ("hit@10", "hit@50", "mrr@10", "mismatch")
        return [
            Task(
                f"{protocol}-{category}",
                _pool(protocol, category),
                "hit@10",
                metrics,
                Modality.IMAGE,
                7,
            )
            for protocol in PROTOCOLS
            for category in CATEGORIES
        ]

    @property
    def notes(self) -> Sequence[str]:
        """What the figures mean."""
        return (
            f"Instruction: {self.instruction}",
            "Both captions of a query are joined by `and`, in M-BEIR's way.",
            "original: the split's pictures of the category; val: those that captions name; mbeir: "
            "all pictures. Figures of one protocol say nothing about another.",
        )

    @property
    def unions(self) -> bool:
        """No: the protocol says what is searched."""
        return False

    @property
    def pool_files(self) -> Sequence[Path]:
        """The lists of pictures, and the captions that make the pools of `val`."""
        return [*self._listings(), *(self._captions(category) for category in CATEGORIES)]

    def _listings(self) -> list[Path]:
        every = (self._listing(category, split) for category in CATEGORIES for split in SPLITS)
        return [path for path in every if path.is_file()]

    def pool(self) -> Iterator[PoolRow | Broken]:
        """Yield each picture once, with the pools of all protocols that it belongs to."""
        pools: dict[str, list[str]] = {}
        for path in self._listings():
            for name in json_file(path):
                pools.setdefault(str(name), ["mbeir"])
        for category in CATEGORIES:
            for name in json_file(self._listing(category, self.split)):
                pools[str(name)].append(_pool("original", category))
            for name in sorted(self._named(category)):
                pools.setdefault(name, ["mbeir"]).append(_pool("val", category))
        for name, found in pools.items():
            yield PoolRow(name, "", self._picture(name), tuple(found), f"image_splits:{name}")

    def _named(self, category: str) -> set[str]:
        entries = json_list(self._captions(category))
        return {str(one[key]) for one in entries for key in ("target", "candidate") if key in one}

    def queries(self, task: Task) -> Iterator[Query | Broken]:
        """Yield reference pictures with both captions; ids are places in the file."""
        category = task.name.partition("-")[2]
        path = self._captions(category)
        for number, entry in enumerate(json_list(path)):
            where = f"{path}[{number}]"
            try:
                text = _joined([text_of(one) for one in entry["captions"]])
                picture = self._picture(str(entry["candidate"]))
                yield Query(f"{category}-{number}", text, picture, where, self.instruction)
            except (KeyError, TypeError) as error:
                yield Broken(where, f"cannot be read: {error}")

    def judgements(self, task: Task) -> Iterator[Judgement | Broken]:
        """Yield the one target of each query."""
        category = task.name.partition("-")[2]
        path = self._captions(category)
        for number, entry in enumerate(json_list(path)):
            yield self._judgement(category, number, entry, path)

    def _judgement(self, category: str, number: int, entry: Json, path: Path) -> Judgement | Broken:
        where = f"{path}[{number}]"
        if "target" not in entry:
            return Broken(where, "has no target")
        return Judgement(f"{category}-{number}", str(entry["target"]), 1, where)

    def _captions(self, category: str) -> Path:
        return self.root / f"captions/cap.{category}.{self.split}.json"

    def _listing(self, category: str, split: str) -> Path:
        return self.root / f"image_splits/split.{category}.{split}.json"

    def _picture(self, name: str) -> Path:
        found = (self.root / "images" / f"{name}{suffix}" for suffix in (".png", ".jpg"))
        return next((path for path in found if path.is_file()), self.root / f"images/{name}.jpg")


def _pool(protocol: str, category: str) -> str:
    return "mbeir" if protocol == "mbeir" else f"{protocol}-{category}"


def _joined(captions: Sequence[str]) -> str:
    plain = [one.strip().removesuffix(".") for one in captions if one.strip()]
    return format_string(" and ".join(one[:1].lower() + one[1:] for one in plain))
