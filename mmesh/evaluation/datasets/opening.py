"""Which data set a folder holds, told by its files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmesh.evaluation.datasets.beir import Beir
from mmesh.evaluation.datasets.circo import Circo
from mmesh.evaluation.datasets.cirr import Cirr
from mmesh.evaluation.datasets.dataset import Dataset, DatasetError
from mmesh.evaluation.datasets.fashioniq import FashionIQ
from mmesh.evaluation.datasets.mbeir import MBeir
from mmesh.evaluation.datasets.own import Own


@dataclass(frozen=True, slots=True)
class Choice:
    """What to take of a data set; a kind of data set looks at what it knows."""

    split: str = ""
    """Empty means the split that publications report."""
    tasks: tuple[str, ...] = ()
    """Names of M-BEIR's tasks."""
    prompt: str = "1"
    seed: int = 0
    unions: bool = True
    """Whether M-BEIR's union pool is wanted, beside those of its tasks."""
    instruction: str = ""
    """In place of the instruction of data sets that have one."""


def _mbeir(root: Path, choice: Choice) -> Dataset:
    split = choice.split or "test"
    return MBeir(root, split, choice.tasks, choice.prompt, choice.seed, choice.unions)


def _with_instruction(
    kind: type[Circo] | type[Cirr] | type[FashionIQ] | type[Beir], split: str
) -> Callable[[Path, Choice], Dataset]:
    def make(root: Path, choice: Choice) -> Dataset:
        named = {"instruction": choice.instruction} if choice.instruction else {}
        return kind(root, choice.split or split, **named)

    return make


def _own(root: Path, choice: Choice) -> Dataset:
    return Own(root, instruction=choice.instruction)


_KINDS: dict[str, tuple[str, Callable[[Path, Choice], Dataset]]] = {
    "mbeir": ("cand_pool", _mbeir),
    "circo": ("annotations/*.json", _with_instruction(Circo, "val")),
    "cirr": ("captions/cap.rc2.*.json", _with_instruction(Cirr, "val")),
    "fashioniq": ("captions/cap.dress.*.json", _with_instruction(FashionIQ, "val")),
    "beir": ("corpus.jsonl*", _with_instruction(Beir, "test")),
    "own": ("pool.jsonl*", _own),
}
"""A file that tells the kind, and how it is made, by name."""
KINDS = tuple(_KINDS)


def open_dataset(root: Path, kind: str = "", choice: Choice | None = None) -> Dataset:
    """Return the data set in a folder; `kind` when its files do not tell.

    Raises:
        DatasetError: it is of no known kind, or incomplete.
    """
    found = [name for name, (sign, _) in _KINDS.items() if any(root.glob(sign))]
    if not kind and not found:
        signs = "; ".join(f"{name}: {sign}" for name, (sign, _) in _KINDS.items())
        raise DatasetError(f"{root} holds none of the data sets that are known ({signs})")
    return _KINDS[kind or found[0]][1](root, choice or Choice())
