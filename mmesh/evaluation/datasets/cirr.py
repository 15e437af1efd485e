"""CIRR: composed image retrieval on NLVR2's pictures, in the whole pool and within groups of six.

Liu et al., ICCV 2021, arXiv 2108.04024; files: Cuberick-Orion/CIRR.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmesh.content import Modality
from mmesh.evaluation.datasets.circo import INSTRUCTION
from mmesh.evaluation.datasets.dataset import Broken, DatasetError, Judgement, PoolRow, Query, Task
from mmesh.evaluation.datasets.rows import Json, checked_id, json_file, json_list, text_of

VERSION = "rc2"


@dataclass(frozen=True)
class Cirr:
    """The folder of the repository, with the pictures in `img_raw`."""

    root: Path
    split: str = "val"
    instruction: str = INSTRUCTION

    def __post_init__(self) -> None:
        """Fail now when the captions are not there."""
        if not self._captions.is_file():
            raise DatasetError(f"{self._captions} is missing")

    @property
    def name(self) -> str:
        """Name of the data set and its split."""
        return f"cirr-{self.split}"

    @property
    def tasks(self) -> Sequence[Task]:
        """The whole pool, and the groups; targets of test1 are only on CIRR's server."""
        judged, image = self.split != "test1", Modality.IMAGE
        whole = tuple(f"hit@{k}" for k in (1, 5, 10, 50))
        within = tuple(f"hit@{k}" for k in (1, 2, 3))
        return [
            Task(self.name, "cirr", "hit@5", whole, image, 7, judged),
            Task(f"{self.name}-subset", "cirr", "hit@1", within, image, 7, judged),
        ]

    @property
    def notes(self) -> Sequence[str]:
        """What the figures mean."""
        return (
            f"Instruction: {self.instruction}",
            "hit@k is CIRR's Recall@k, and Recall_subset@k in the subset task, which searches among"
            " the group of each query alone.",
            "The reference picture is taken out of the hits, as is the custom.",
        )

    @property
    def unions(self) -> bool:
        """No: both tasks have one pool."""
        return False

    @property
    def pool_files(self) -> Sequence[Path]:
        """The list of the split's pictures."""
        return (self.root / f"image_splits/split.{VERSION}.{self.split}.json",)

    def pool(self) -> Iterator[PoolRow | Broken]:
        """Yield the pictures of the split by name."""
        (path,) = self.pool_files
        names = json_file(path)
        if not isinstance(names, dict):
            raise DatasetError(f"{path} is not an object of names and files")
        for name, file in names.items():
            picture = self.root / "img_raw" / str(file)
            yield PoolRow(name, "", picture, ("cirr",), f"{path}:{name}", {"id": name})

    def queries(self, task: Task) -> Iterator[Query | Broken]:
        """Yield reference pictures with the caption that changes them."""
        (path,) = self.pool_files
        files = json_file(path)
        for number, entry in enumerate(json_list(self._captions)):
            where = f"{self._captions}[{number}]"
            try:
                yield self._query(task, entry, files, where)
            except (KeyError, TypeError, ValueError) as error:
                yield Broken(where, f"cannot be read: {error}")

    def _query(self, task: Task, entry: Json, files: dict[str, Any], where: str) -> Query:
        reference = str(entry["reference"])
        group: tuple[str, ...] = ()
        if task.name.endswith("-subset"):
            members = map(str, entry["img_set"]["members"])
            group = tuple(one for one in members if one != reference)
        return Query(
            checked_id(entry["pairid"]),
            text_of(entry["caption"]),
            self.root / "img_raw" / files[reference],
            where,
            self.instruction,
            excluded=(reference,),
            among=group,
        )

    def judgements(self, task: Task) -> Iterator[Judgement | Broken]:
        """Yield the one target of each query."""
        for number, entry in enumerate(json_list(self._captions)):
            where = f"{self._captions}[{number}]"
            if "target_hard" not in entry or "pairid" not in entry:
                yield Broken(where, "has no pairid or no target_hard")
            else:
                yield Judgement(str(entry["pairid"]), str(entry["target_hard"]), 1, where)

    @property
    def _captions(self) -> Path:
        return self.root / f"captions/cap.{VERSION}.{self.split}.json"
