"""CIRCO: composed image retrieval on COCO's unlabelled pictures, with several ground truths.

Baldrati et al., ICCV 2023, arXiv 2303.15247; files: miccunifi/CIRCO.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmesh.content import Modality
from mmesh.evaluation.datasets.dataset import Broken, DatasetError, Judgement, PoolRow, Query, Task
from mmesh.evaluation.datasets.rows import Json, checked_id, json_file, json_list, text_of

_CUTS = (5, 10, 25, 50)
INSTRUCTION = "Retrieve a day-to-day image that aligns with the modification instructions of the provided image."  # noqa: E501  # M-BEIR's words for CIRR, the same task
_TARGET, _TRUE = 2, 1


@dataclass(frozen=True)
class Circo:
    """The folder of the repository, with COCO's pictures in `COCO2017_unlabeled`."""

    root: Path
    split: str = "val"
    instruction: str = INSTRUCTION

    def __post_init__(self) -> None:
        """Fail now when the annotations are not there."""
        if not self._annotations.is_file():
            raise DatasetError(f"{self._annotations} is missing")

    @property
    def name(self) -> str:
        """Name of the data set and its split."""
        return f"circo-{self.split}"

    @property
    def tasks(self) -> Sequence[Task]:
        """One task; the ground truths of the test split are only on CIRCO's server."""
        metrics = (*(f"map@{k}" for k in _CUTS), *(f"target_hit@{k}" for k in _CUTS))
        judged = self.split != "test"
        return [Task(self.name, "circo", "map@5", metrics, Modality.IMAGE, 7, judged)]

    @property
    def notes(self) -> Sequence[str]:
        """What the figures mean."""
        return (
            f"Instruction: {self.instruction}",
            "map@k divides by min(ground truths, k); target_hit@k is CIRCO's Recall@k.",
            "The reference picture stays among the candidates.",
        )

    @property
    def unions(self) -> bool:
        """No: there is one pool."""
        return False

    @property
    def pool_files(self) -> Sequence[Path]:
        """COCO's own list, else the folder of pictures."""
        return (self._listing if self._listing.is_file() else self._pictures,)

    def pool(self) -> Iterator[PoolRow | Broken]:
        """Yield the pictures by COCO's id."""
        if not self._listing.is_file():
            for path in sorted(self._pictures.glob("*.jpg")):
                if path.stem.isdecimal():
                    yield PoolRow(str(int(path.stem)), "", path, ("circo",), str(path))
                else:
                    yield Broken(str(path), "has no number of COCO as its name")
            return
        for number, entry in enumerate(json_file(self._listing)["images"]):
            where = f"{self._listing}:images[{number}]"
            if "id" not in entry or "file_name" not in entry:
                yield Broken(where, "has no id or no file_name")
                continue
            path = self._pictures / entry["file_name"]
            yield PoolRow(str(entry["id"]), "", path, ("circo",), where)

    def queries(self, task: Task) -> Iterator[Query | Broken]:
        """Yield reference pictures with the caption that changes them."""
        for number, entry in enumerate(json_list(self._annotations)):
            where = f"{self._annotations}[{number}]"
            try:
                yield self._query(entry, where)
            except (KeyError, TypeError, ValueError) as error:
                yield Broken(where, f"cannot be read: {error}")

    def _query(self, entry: Json, where: str) -> Query:
        reference = int(entry["reference_img_id"])
        return Query(
            checked_id(entry["id"]),
            text_of(entry["relative_caption"]),
            self._pictures / f"{reference:012d}.jpg",
            where,
            self.instruction,
            groups=tuple(entry.get("semantic_aspects") or ()),
        )

    def judgements(self, task: Task) -> Iterator[Judgement | Broken]:
        """Yield the ground truths; the one that the caption was written for has a higher grade."""
        for number, entry in enumerate(json_list(self._annotations)):
            where, truths = f"{self._annotations}[{number}]", entry.get("gt_img_ids") or []
            if not isinstance(truths, list):
                yield Broken(where, "gt_img_ids is no list")
                continue
            for one in truths:
                grade = _TARGET if one == entry.get("target_img_id") else _TRUE
                yield Judgement(str(entry.get("id")), str(one), grade, where)

    @property
    def _annotations(self) -> Path:
        return self.root / "annotations" / f"{self.split}.json"

    @property
    def _pictures(self) -> Path:
        return self.root / "COCO2017_unlabeled/unlabeled2017"

    @property
    def _listing(self) -> Path:
        return self.root / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"
