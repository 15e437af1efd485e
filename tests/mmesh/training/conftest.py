"""A learner of a few numbers, so that the loop is tested in no time, and data for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import pytest

from mmesh.content import Content, Role
from mmesh.models.protocol import Prepared

WORDS = "harbour glacier violin tractor orchid comet bakery lantern canyon piano".split()  # noqa: SIM905


@pytest.fixture
def bag_of_words(request) -> Callable[..., object]:
    """Make a `Learner`: the mean of learned vectors of words, with dropout."""
    torch = pytest.importorskip("torch", reason="torch is absent: run `make setup-training`")

    class BagOfWords:
        def __init__(self, dropout: float = 0.1, seed: int = 0) -> None:
            torch.set_num_threads(1)
            torch.manual_seed(seed)
            self.network = torch.nn.Sequential(
                torch.nn.EmbeddingBag(4096, 24, mode="mean"), torch.nn.Dropout(dropout)
            )

        def prepare(self, content: Content, role: Role, instruction: str) -> Prepared:
            words = f"{instruction} {content.text}".split()
            ids = [int.from_bytes(sha256(word.encode()).digest()[:2]) % 4096 for word in words]
            return Prepared("text", len(ids), ids)

        def embed(self, inputs: Sequence[Prepared]):
            flat = torch.tensor([one for each in inputs for one in each.payload])
            lengths = torch.tensor([0, *(len(one.payload) for one in inputs)])
            rows = self.network[1](self.network[0](flat, lengths.cumsum(0)[:-1]))
            return torch.nn.functional.normalize(rows, dim=1)

        def save(self, folder: Path) -> None:
            folder.mkdir(parents=True)
            torch.save(self.network.state_dict(), folder / "weights.pt")

    return BagOfWords


@pytest.fixture
def pairs_file(tmp_path) -> Callable[..., Path]:
    """Write a JSONL file of pairs: invented words, and what they mean."""

    def write(count: int = 60, name: str = "pairs.jsonl", **more: object) -> Path:
        path = tmp_path / name
        rows = [
            {"query": f"zu{n % 10} ki{n // 10}", "positive": f"{WORDS[n % 10]} {WORDS[n // 10]}"}
            for n in range(count)
        ]
        path.write_text("".join(json.dumps(row | more) + "\n" for row in rows))
        return path

    return write
