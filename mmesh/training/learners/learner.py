"""The protocol of a family in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import Field, FiniteFloat

from mmesh.content import Content, Role
from mmesh.models.protocol import Prepared

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Adapting:
    """Which parameters train: low-rank adapters (LoRA, arXiv 2106.09685)."""

    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[FiniteFloat, Field(gt=0)] = 16.0
    dropout: Annotated[FiniteFloat, Field(ge=0, lt=1)] = 0.0


class Learner(Protocol):
    """A model whose chosen parameters can be trained."""

    @property
    def network(self) -> Any:
        """The module that holds all parameters; those that train require gradients."""

    def prepare(self, content: Content, role: Role, instruction: str) -> Prepared:
        """Make an input ready; called on a worker thread.

        Raises:
            InvalidField: a part cannot be read.
        """

    def embed(self, inputs: Sequence[Prepared]) -> Tensor:
        """Return unit rows (n, dim) of inputs of any groups, in order, with their graph."""

    def save(self, folder: Path) -> None:
        """Write a folder that an encoder serves, its adapters merged into the weights.

        Raises:
            OSError: it cannot be written.
        """
