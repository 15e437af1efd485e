"""Which examples a step shows: a function of seed and step, so that a run can go on exactly."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mmesh.training.errors import TrainingError
from mmesh.training.examples import Example, Lesson


@dataclass(frozen=True)
class Sampler:
    """Draws batches from data sets by weight.

    Each data set is gone through in an order of its own for each epoch. Batches are mixed, each
    with the same share of every set, or each of one set, drawn by weight.
    """

    examples: Mapping[str, Sequence[Example]]
    weights: Mapping[str, float]
    batch: int
    negatives: int
    """Of each query; fewer where it has fewer."""
    seed: int
    mixed: bool = True

    def __post_init__(self) -> None:
        """Refuse epochs without a batch."""
        for name, count in self._counts().items():
            there = len(self.examples[name])
            if there < count:
                raise TrainingError(
                    f"the data {name!r} has {there} examples, and a batch takes {count} of them: "
                    "an epoch would be empty; give more data or a smaller batch"
                )

    def steps_of(self, epochs: float) -> int:
        """Return how many steps show the largest data set so often."""
        steps = [len(self.examples[name]) // count for name, count in self._counts().items()]
        if not self.mixed:
            return max(1, round(epochs * sum(steps)))
        return max(1, round(epochs * max(steps)))

    def lessons(self, step: int) -> list[Lesson]:
        """Return the batch of a step, from 0."""
        if self.mixed:
            counts = self._counts()
            return [
                lesson
                for name, count in counts.items()
                for lesson in self._some(name, step * count, count)
            ]
        weights = tuple(self.weights.values())
        chosen, before = _turns(self.seed, weights, step // TURNS)
        turn = step % TURNS
        one = int(chosen[turn])
        done = int(before[one]) + int((chosen[:turn] == one).sum())
        return self._some(list(self.weights)[one], self.batch * done, self.batch)

    def _counts(self) -> dict[str, int]:
        """Return how many examples of each set are in a batch."""
        if not self.mixed:
            return dict.fromkeys(self.weights, self.batch)
        total = sum(self.weights.values())
        shares = {name: self.batch * weight / total for name, weight in self.weights.items()}
        counts = {name: int(share) for name, share in shares.items()}
        by_remainder = sorted(shares, key=lambda name: counts[name] - shares[name])
        for name in by_remainder[: self.batch - sum(counts.values())]:
            counts[name] += 1
        if left_out := [name for name, count in counts.items() if not count]:
            raise TrainingError(
                f"a batch of {self.batch} has no place for {left_out[0]!r}: give it more weight, "
                "or batches more examples"
            )
        return counts

    def _some(self, name: str, start: int, count: int) -> list[Lesson]:
        whole = len(self.examples[name]) // count * count
        found = []
        for place in range(start, start + count):
            epoch, row = divmod(place, whole)
            order = _order(self.seed, name, epoch, len(self.examples[name]))
            found.append(self._lesson(self.examples[name][order[row]], epoch))
        return found

    def _lesson(self, example: Example, epoch: int) -> Lesson:
        dice = random.Random(f"{self.seed}:{epoch}:{example.id}")
        positive = dice.choice(example.positives)
        count = min(self.negatives, len(example.negatives))
        return Lesson(example, positive, tuple(dice.sample(example.negatives, count)))


TURNS = 4096
"""Steps whose data sets are drawn together."""


@lru_cache(maxsize=8)
def _turns(
    seed: int, weights: tuple[float, ...], block: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which set each step of a block is of, and how many steps before it were of each."""
    before = np.zeros(len(weights), np.int64)
    if block:
        drawn, earlier = _turns(seed, weights, block - 1)
        before = earlier + np.bincount(drawn, minlength=len(weights))
    shares = np.array(weights) / sum(weights)
    return np.random.default_rng([seed, block]).choice(len(weights), TURNS, p=shares), before


@lru_cache(maxsize=16)
def _order(seed: int, name: str, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, *name.encode(), epoch]).permutation(count)
