"""What a vector store must do to be compared."""

from __future__ import annotations

import abc
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

DIM = 384
LIMIT = 10
M, EF_CONSTRUCTION = 16, 100
"""Of every HNSW graph: the links of a node, and how widely a new one looks for them."""
EFS = (32, 48, 64, 80, 100, 150, 200, 300, 400, 600, 800)
"""Widths of a search in a graph, for those who have one."""

Vector = NDArray[np.float32]
Setting = Any
"""What makes a search more exact and slower; JSON."""
Condition = tuple[str, int]
"""Name of an attribute and the value that it must have."""
Searcher = Callable[[Vector, Condition | None], Sequence[int]]
"""Returns the ids of the nearest rows for which the condition holds, best first."""
AsyncSearcher = Callable[[Vector, Condition | None], Awaitable[Sequence[int]]]
"""The same, to be awaited."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows in order, with what is stored beside each vector."""

    ids: Sequence[int]
    vectors: NDArray[np.float32]
    cats: Sequence[int]
    """Attribute `cat`: one of 10 values."""
    subs: Sequence[int]
    """Attribute `sub`: one of 100 values, 10 of each `cat`."""
    texts: Sequence[str]

    def __len__(self) -> int:
        return len(self.ids)


class Peer(abc.ABC):
    """A vector store in a folder. Opened empty it takes rows; `finish` makes them searchable."""

    about: ClassVar[str]
    """How it runs, in a few words."""
    durable: ClassVar[str]
    """What it has done when `add` returns."""
    is_kept: ClassVar[bool] = True
    """Whether a later run may search what an earlier one built."""
    about_clients: ClassVar[str] = "threads in its process"
    is_async: ClassVar[bool] = False
    """Whether clients are tasks of one event loop, not threads: searchers are awaited."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    @abc.abstractmethod
    def version(cls) -> str:
        """Return the version of what does the work.

        Raises:
            ImportError: it is not installed.
        """

    @classmethod
    def settings(cls, recall: float) -> list[Setting]:
        """Return the settings that may reach a recall, from fast to exact."""
        del recall
        return list(EFS)

    @abc.abstractmethod
    def open(self) -> None:
        """Open what the folder holds, or make an empty store in it."""

    @abc.abstractmethod
    def add(self, batch: Batch) -> None:
        """Store rows, as durably as the store does for its callers."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Build the indexes."""

    @abc.abstractmethod
    def searcher(self, setting: Setting) -> Searcher | AsyncSearcher:
        """Return what one client, that is one thread or task, searches with."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close the store and end its processes."""

    def prepare(self, setting: Setting) -> None:
        """Make ready for searches with a setting; called before they start."""
        del setting  # else it is an argument of each search

    def detail(self, setting: Setting) -> str:
        """Return what there is to say about the searches with a setting."""
        return f"setting {setting}"

    def processes(self) -> list[int]:
        """Return the ids of the processes that work, children apart."""
        return [os.getpid()]
