"""What sections share: options, what they report, and batches and times."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mmesh.content import Content, Role
from mmesh.models.protocol import EncoderModel, FloatMatrix, Prepared, encode_together
from mmesh.serving.batching.backlog import BatchShape
from mmesh.serving.batching.batcher import BatchLimits
from services.encoder import tuning

Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Options:
    """Where and how much to measure."""

    device: str
    small: bool
    """Sizes that suit a CPU: to see that the script works, not how fast anything is."""
    seconds: float
    """Of each measurement of a rate."""
    seed: int = 7

    @property
    def is_cuda(self) -> bool:
        """Whether there is a GPU to measure."""
        return self.device.startswith("cuda")

    @property
    def scale(self) -> float:
        """Length of inputs beside the usual one."""
        return 0.15 if self.small else 1.0


@dataclass
class Found:
    """What a section measured: rows of a table, and whether rules are kept."""

    rows: list[dict[str, Value]] = field(default_factory=list)
    gates: list[dict[str, Value]] = field(default_factory=list)
    on_change: Callable[[], None] = lambda: None

    def row(self, what: str, **values: Value) -> None:
        """Keep and print a row."""
        self.rows.append({"what": what, **values})
        shown = "  ".join(f"{name} {text_of(value)}" for name, value in values.items())
        print(f"  {what}: {shown}", flush=True)
        self.on_change()

    def gate(self, rule: str, value: float, passed: bool) -> None:
        """Keep whether a rule is kept."""
        self.gates.append({"rule": rule, "value": float(value), "passed": bool(passed)})
        print(f"  {'PASS' if passed else 'FAIL'} {rule}: {text_of(value)}", flush=True)
        self.on_change()

    def as_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {"rows": self.rows, "gates": self.gates}


def text_of(value: Value) -> str:
    """Return three or four digits of a number."""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def synchronize(device: str) -> None:
    """Wait for all that was launched."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds_of(device: str, run: Callable[[], Any], repeats: int = 5, inner: int = 1) -> float:
    """Return the median seconds of a run, after one that does not count."""
    run()
    times = []
    for _ in range(repeats):
        synchronize(device)
        begun = time.perf_counter()
        for _ in range(inner):
            run()
        synchronize(device)
        times.append((time.perf_counter() - begun) / inner)
    return float(np.median(times))


def prepared(
    model: EncoderModel, contents: Sequence[Content], role: Role = Role.CANDIDATE
) -> list[Prepared]:
    """Return prepared inputs, made on as many threads as there are cores."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda content: model.prepare(content, role, ""), contents))


def tuned(model: EncoderModel) -> BatchLimits:
    """Return the limits that the service would measure."""
    return tuning.limits_for(list(tuning.timed(model)), packed=model.info.packs, devices=1)


def sorted_batches(inputs: Sequence[Prepared], shape: BatchShape) -> list[list[Prepared]]:
    """Cut inputs, sorted by group and cost, into the largest batches that are allowed."""
    batches: list[list[Prepared]] = []
    for one in sorted(inputs, key=lambda one: (one.group, one.cost)):
        last = batches[-1] if batches else []
        grown = [*(other.cost for other in last), one.cost]
        fits = len(grown) <= shape.max_items and shape.cost_of(grown) <= shape.max_cost
        if last and fits and last[0].group == one.group:
            last.append(one)
        else:
            batches.append([one])
    return batches


def offline_seconds(model: EncoderModel, batches: Sequence[Sequence[Prepared]]) -> float:
    """Return the seconds of the passes alone: all is collated beforehand, launching overlaps."""
    collated = [model.collate(batch) for batch in batches]
    with ThreadPoolExecutor(model.info.passes) as pool:
        list(pool.map(model.forward, collated[:2]))
        begun = time.perf_counter()
        list(pool.map(model.forward, collated))
        return time.perf_counter() - begun


def alone(model: EncoderModel, inputs: Sequence[Prepared]) -> FloatMatrix:
    """Return the vectors (n, dim), each computed by a pass of its own."""
    return np.concatenate([encode_together(model, [one]) for one in inputs])


def together(
    model: EncoderModel, inputs: Sequence[Prepared], shape: BatchShape, order: Sequence[int]
) -> FloatMatrix:
    """Return the vectors (n, dim), computed in batches of inputs that follow in `order`."""
    rows = np.empty((len(inputs), model.info.dim), np.float32)
    batch: list[int] = []
    for place in [*order, -1]:
        costs = [inputs[one].cost for one in batch]
        full = len(batch) >= shape.max_items or (
            batch and place >= 0 and shape.cost_of([*costs, inputs[place].cost]) > shape.max_cost
        )
        if batch and (place < 0 or full):
            rows[batch] = encode_together(model, [inputs[one] for one in batch])
            batch = []
        batch.append(place)
    return rows
