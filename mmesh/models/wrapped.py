"""An encoder that answers through another one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmesh.content import Content, Role
from mmesh.models.protocol import EncoderInfo, EncoderModel, FloatMatrix, Prepared


class Wrapped:
    """Implements `EncoderModel` with the work of `model` and an `info` of its own."""

    def __init__(self, model: EncoderModel, info: EncoderInfo) -> None:
        self._model = model
        self._info = info

    @property
    def info(self) -> EncoderInfo:
        """Name, fingerprint, dim and limits; constant."""
        return self._info

    def prepare(self, content: Content, role: Role, instruction: str) -> Prepared:
        """Return what the inner model prepares."""
        return self._model.prepare(content, role, instruction)

    def collate(self, batch: Sequence[Prepared]) -> Any:
        """Return what the inner model collates."""
        return self._model.collate(batch)

    def forward(self, collated: Any) -> FloatMatrix:
        """Return the inner model's unit rows."""
        return self._model.forward(collated)
