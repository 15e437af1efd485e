"""Whether a model answers alike alone, in a batch, in any order, and as a reference does.

Wrong answers look like answers: a padding that leaks, a template with a space too many or a kernel
that depends on the batch give vectors and scores that are merely worse. So a few probes are asked
in every way that must make no difference, and the largest difference is what counts.
"""

from __future__ import annotations

import random
import zipfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmesh.content import Content, Modality, Role
from mmesh.errors import FailedPrecondition, InvalidField
from mmesh.models import probes
from mmesh.models.protocol import EncoderModel, FloatMatrix, encode_together

Answers = NDArray[np.float64]
"""(n, d): for each of n inputs a unit vector of d numbers, or a score."""
Ask = Callable[[Sequence[int]], Awaitable[Answers]]
"""Asks for the probes of a group at these places, in one call and in this order."""

_LONG = "a report about the harbour and the ships that come and go " * 8
_INSTRUCTION = "Find what shows the same thing in another way."


@dataclass(frozen=True, slots=True)
class Group:
    """Probes that one call can hold."""

    names: Sequence[str]
    ask: Ask


@dataclass(frozen=True, slots=True)
class Row:
    """How much the answer (d,) to one probe changed, as the largest difference of a number."""

    name: str
    answer: Answers
    together: float
    shuffled: float
    reference: float | None
    """None without a reference."""

    @property
    def largest(self) -> float:
        """The largest of the differences; infinite when the answer is not finite."""
        worst = float(np.max([self.together, self.shuffled, self.reference or 0.0]))
        return worst if np.isfinite(self.answer).all() and np.isfinite(worst) else float("inf")


@dataclass(frozen=True, slots=True)
class Reference:
    """Answers to the probes by name, and what gave them."""

    source: str
    answers: Mapping[str, Answers]


async def ask_alone(groups: Sequence[Group]) -> dict[str, Answers]:
    """Return the answers (d,) by name to all probes that the model reads, asked one by one."""
    return {
        group.names[place]: answer
        for group in groups
        for place, answer in (await _readable(group)).items()
    }


async def measure(groups: Sequence[Group], reference: Reference | None = None) -> list[Row]:
    """Ask for all probes alone, together and in another order; return a row for each.

    Probes that the model does not read are left out.

    Raises:
        FailedPrecondition: the model reads none of them, or the reference lacks one.
    """
    rows = [row for group in groups for row in await _measure_group(group, reference)]
    if not rows:
        raise FailedPrecondition("the model reads none of the probes")
    return rows


def largest(rows: Sequence[Row]) -> float:
    """Return the largest difference of all probes."""
    return max(row.largest for row in rows)


async def _measure_group(group: Group, reference: Reference | None) -> list[Row]:
    alone = await _readable(group)
    places = list(alone)
    if not places:
        return []
    together = dict(zip(places, await group.ask(places), strict=True))
    order = random.Random(0).sample(places, len(places))
    shuffled = dict(zip(order, await group.ask(order), strict=True))
    return [
        Row(
            group.names[place],
            answer,
            _difference(answer, together[place]),
            _difference(answer, shuffled[place]),
            _from_reference(group.names[place], answer, reference),
        )
        for place, answer in alone.items()
    ]


async def _readable(group: Group) -> dict[int, Answers]:
    """Return the answers (d,) to the probes, asked one by one, that the model reads."""
    found = {}
    for place in range(len(group.names)):
        try:
            (found[place],) = await group.ask([place])
        except InvalidField:
            continue
    return found


def _difference(one: Answers, other: Answers) -> float:
    return float(np.abs(one - other).max())


def _from_reference(name: str, answer: Answers, reference: Reference | None) -> float | None:
    if reference is None:
        return None
    expected = reference.answers.get(name)
    if expected is None or expected.shape != answer.shape:
        problem = f"{reference.source} has no answer of {len(answer)} numbers to {name!r}"
        raise FailedPrecondition(f"{problem}; make it anew with --save")
    return _difference(answer, expected)


# -- files


def save_reference(path: Path, reference: Reference) -> None:
    """Write the answers as an .npz file, for `load_reference`."""
    arrays: dict[str, Any] = {"source": np.array(reference.source), **reference.answers}
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_reference(path: Path) -> Reference:
    """Read what `save_reference` wrote.

    Raises:
        FailedPrecondition: it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            answers = {
                name: np.asarray(file[name], np.float64) for name in file if name != "source"
            }
            return Reference(f"{path} ({file['source']})", answers)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise FailedPrecondition(f"{path} holds no stored answers: {error}") from None


# -- the probes of judges


Score = Callable[[Content, str, Sequence[Content]], Awaitable[Sequence[float]]]
"""Returns a score for each candidate, as `JudgeModel.score` does."""


def judge_groups(score: Score) -> list[Group]:
    """Return pairs of all modalities, with and without instruction, long and of odd sizes."""
    candidates = {
        "text": Content.of("a lighthouse on a cliff"),
        "long text": Content.of(_LONG),
        "picture": Content.of(probes.picture(0)),
        "odd picture": Content.of(probes.picture(1, (97, 41))),
        "picture and text": Content.of(probes.picture(2), "seen from the sea"),
    }
    words, mixed = (
        Content.of("where do ships find their way?"),
        Content.of(probes.picture(3), "red"),
    )
    return [
        _pairs("words", score, words, "", candidates),
        _pairs("picture and words", score, mixed, _INSTRUCTION, candidates),
    ]


def _pairs(
    name: str, score: Score, query: Content, instruction: str, candidates: Mapping[str, Content]
) -> Group:
    contents = list(candidates.values())

    async def ask(places: Sequence[int]) -> Answers:
        scores = await score(query, instruction, [contents[place] for place in places])
        return np.array(scores, np.float64).reshape(-1, 1)

    return Group([f"{name} → {candidate}" for candidate in candidates], ask)


# -- the probes of encoders


Encode = Callable[[Sequence[Content], Role, str], Awaitable[FloatMatrix]]
"""Returns unit rows (n, dim) for contents that share a role and an instruction."""


def encoder_groups(encode: Encode, modalities: frozenset[Modality]) -> list[Group]:
    """Return inputs of `modalities` in both roles, with and without instruction."""
    inputs = {
        "text": Content.of("a lighthouse on a cliff"),
        "short text": Content.of("red"),
        "long text": Content.of(_LONG),
        "picture": Content.of(probes.picture(0)),
        "odd picture": Content.of(probes.picture(1, (97, 41))),
        "picture and text": Content.of(probes.picture(2), "seen from the sea"),
    }
    read = {name: content for name, content in inputs.items() if content.modality in modalities}
    return [
        _inputs("query", encode, Role.QUERY, "", read),
        _inputs("instructed query", encode, Role.QUERY, _INSTRUCTION, read),
        _inputs("candidate", encode, Role.CANDIDATE, "", read),
    ]


def _inputs(
    name: str, encode: Encode, role: Role, instruction: str, inputs: Mapping[str, Content]
) -> Group:
    contents = list(inputs.values())

    async def ask(places: Sequence[int]) -> Answers:
        rows = await encode([contents[place] for place in places], role, instruction)
        return np.asarray(rows, np.float64)

    return Group([f"{name}: {content}" for content in inputs], ask)


def encoding_by(model: EncoderModel) -> Encode:
    """Return a function that encodes with `model`, one input at a time."""

    async def encode(contents: Sequence[Content], role: Role, instruction: str) -> FloatMatrix:
        prepared = [model.prepare(content, role, instruction) for content in contents]
        return np.concatenate([encode_together(model, [one]) for one in prepared])

    return encode
