"""The values of the encoder's metric labels are few, whatever callers send."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from prometheus_client import REGISTRY

from mmesh.content import Content, Modality, Role
from mmesh.models.protocol import EncoderInfo, FloatMatrix, Prepared
from mmesh.serving.batching.backlog import Priority
from mmesh.serving.batching.batcher import BatchLimits
from mmesh.serving.deadline import Deadline
from services.encoder.engine import EncoderEngine
from services.encoder.preparation import EncodeOptions
from tests.effort import patient


class GroupingModel:
    """Stands for a model that puts each instruction into a group of its own."""

    info = EncoderInfo("grouping", "grouping-1", 2, frozenset({Modality.TEXT}), 100, True)

    def prepare(self, content: Content, role: Role, instruction: str) -> Prepared:
        return Prepared(f"labelled {instruction}", 1, None)

    def collate(self, batch: Sequence[Prepared]) -> int:
        return len(batch)

    def forward(self, collated: Any) -> FloatMatrix:
        return np.tile(np.array([0.6, 0.8], np.float32), (collated, 1))


def labels() -> dict[str, set[str]]:
    """The values of the label `group`, by metric."""
    found: dict[str, set[str]] = {}
    for metric in REGISTRY.collect():
        for sample in metric.samples:
            if metric.name.startswith("mmesh_encoder") and "group" in sample.labels:
                found.setdefault(metric.name, set()).add(sample.labels["group"])
    return found


async def test_groups_that_callers_choose_are_no_labels() -> None:
    inputs = [(Content.of("x"), f"do it {n} times") for n in range(20)]
    options = EncodeOptions(Role.QUERY, Priority.INTERACTIVE, Deadline.after(patient(10)))
    async with EncoderEngine([GroupingModel()], BatchLimits()) as engine:
        await engine.encode(inputs, options)
    assert len(labels()) == 5
    for name, values in labels().items():
        assert {one for one in values if one.startswith("labelled")} == {"labelled"}, name
