"""What every encoder family must show: its reference's vectors, alone and in any batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from mmesh.content import Content, Role
from mmesh.models import probes
from mmesh.models.protocol import EncoderModel, Prepared, encode_together

REFERENCE_TOLERANCE = 1e-4
BATCH_TOLERANCE = 1e-5
INSTRUCTION = "Find a photo that answers the query"


@dataclass(frozen=True)
class Case:
    """One input of the parity matrix."""

    name: str
    content: Content
    role: Role = Role.QUERY
    instruction: str = ""


def long_text(words: int, seed: int = 0) -> str:
    vocabulary = ("red", "square", "the", "dog", "under", "house", "by", "cat,", "tree", "on")
    return " ".join(random.Random(seed).choices(vocabulary, k=words))


def matrix() -> list[Case]:
    odd = {"tall": (37, 91), "wide": (213, 40), "tiny": (3, 5), "large": (301, 298)}
    text, pair = Content.of("a red square"), Content.of(probes.picture(1), "the same in blue")
    contents = {
        "text": text,
        "one word": Content.of("cat"),
        "other script": Content.of("Übergröße, 你好 — ¿qué?\n\ttwo lines"),
        "two texts": Content.of("a red square", "on white ground"),
        "long text": Content.of(long_text(600)),
        "image": Content.of(probes.picture(0)),
        **{f"{name} image": Content.of(probes.picture(7, size)) for name, size in odd.items()},
        "image and text": pair,
        "text before image": Content.of("the same in blue", probes.picture(1)),
        "image and long text": Content.of(probes.picture(2), long_text(600, seed=1)),
        "two images": Content.of(probes.picture(3), probes.picture(4, (40, 72))),
        "two images and text": Content.of(probes.picture(3), probes.picture(4), "between them"),
    }
    cases = [Case(name, content) for name, content in contents.items()]
    for name in ("text", "image", "image and text"):
        cases += [
            Case(f"{name}, candidate", contents[name], Role.CANDIDATE),
            Case(f"{name}, instructed", contents[name], instruction=INSTRUCTION),
            Case(f"{name}, instructed candidate", contents[name], Role.CANDIDATE, INSTRUCTION),
        ]
    return cases


def prepare(model: EncoderModel, case: Case) -> Prepared:
    return model.prepare(case.content, case.role, case.instruction)


def shuffled_batches(prepared: Sequence[Prepared], seed: int) -> Iterator[list[int]]:
    """Yield places in batches of up to seven, of one group each, in a random order."""
    random_order = random.Random(seed)
    for group in sorted({one.group for one in prepared}):
        places = [place for place, one in enumerate(prepared) if one.group == group]
        random_order.shuffle(places)
        while places:
            size = random_order.randint(2, 7)
            yield places[:size]
            del places[:size]


def worst(cases: Sequence[Case], found: np.ndarray, wanted: np.ndarray) -> tuple[float, str]:
    differences = np.abs(found - wanted).max(axis=1)
    place = int(differences.argmax())
    return float(differences[place]), cases[place].name


def check(
    model: EncoderModel,
    reference: Callable[[Case], np.ndarray],
    cases: Sequence[Case] | None = None,
) -> np.ndarray:
    """Compare every case with `reference(case)`, a unit vector (dim,); return the model's rows."""
    chosen = matrix() if cases is None else cases
    prepared = [prepare(model, case) for case in chosen]
    alone = np.concatenate([encode_together(model, [one]) for one in prepared])
    assert alone.dtype == np.float32
    assert alone.shape == (len(chosen), model.info.dim)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1.0, atol=1e-5)
    difference, name = worst(chosen, alone, np.stack([reference(case) for case in chosen]))
    assert difference <= REFERENCE_TOLERANCE, f"{name}: {difference:.1e} from the reference"
    for seed in range(3):
        for places in shuffled_batches(prepared, seed):
            rows = encode_together(model, [prepared[place] for place in places])
            difference, name = worst([chosen[p] for p in places], rows, alone[places])
            assert difference <= BATCH_TOLERANCE, f"{name}: {difference:.1e} in a batch"
    return alone


@pytest.fixture(scope="session")
def parity_cases() -> list[Case]:
    """The whole matrix, for families that must leave some cases out."""
    return matrix()


@pytest.fixture
def check_parity() -> Callable[..., np.ndarray]:
    """`check_parity(model, reference, cases)`: see `check`."""
    import torch

    torch.set_num_threads(1)
    return check


@pytest.fixture(scope="session")
def new_case() -> type[Case]:
    """Make cases of one's own: `new_case(name, content, role, instruction)`."""
    return Case
