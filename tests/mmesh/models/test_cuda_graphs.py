"""Which recording a batch is padded to."""

from __future__ import annotations

import importlib.util

import pytest

pytestmark = [
    pytest.mark.models,
    pytest.mark.skipif(
        importlib.util.find_spec("torch") is None, reason="torch is absent: run `make setup-models`"
    ),
]


def test_a_recording_has_room_and_is_the_smallest() -> None:
    from mmesh.models.cuda_graphs import LEAST_LENGTH, MOST_LENGTH, WIDTHS, Slots

    below = 0
    for width in WIDTHS:
        for tokens in range(below + 1, width + 1):
            lengths = [MOST_LENGTH] * (tokens // MOST_LENGTH) + [tokens % MOST_LENGTH]
            slots = Slots.around(lengths)
            assert slots == (width, width // LEAST_LENGTH, min(width, MOST_LENGTH))
        below = width
    assert Slots.around([MOST_LENGTH] * (WIDTHS[-1] // MOST_LENGTH) + [1]) is None
    assert Slots.around([LEAST_LENGTH] * 4) == (64, 4, 64)
    assert Slots.around([1] * 5) is None, "there are as many slots as sequences of ordinary length"
    assert Slots.around([MOST_LENGTH + 1]) is None, "attention would be laid out for it everywhere"


def test_padding_belongs_to_no_sequence() -> None:
    import torch

    from mmesh.models.cuda_graphs import Slots
    from mmesh.models.encoders.packed import Packing, attention, padded

    lengths, slots = [5, 11], Slots(64, 4, 64)
    packing = Packing.of(lengths, slots)
    assert packing.offsets.tolist() == [0, 5, 16, 16, 16]
    assert padded(torch.ones(3, 16), slots).sum() == 48
    queries, keys, values = torch.randn(3, 64, 2, 8).unbind()
    found = attention(queries, keys, values, packing, causal=True)
    exact = Packing.of(lengths)
    wanted = attention(queries[:16], keys[:16], values[:16], exact, causal=True)
    torch.testing.assert_close(found[:16], wanted)


def test_every_tensor_is_reached_wherever_it_is() -> None:
    import torch

    from mmesh.models.cuda_graphs import each_tensor
    from mmesh.models.encoders.packed import Packing

    inputs = {"packing": Packing.of([2, 3]), "pair": (torch.ones(2), "kept"), "number": 3}
    found = each_tensor(inputs, lambda tensor: tensor + 1)
    assert found["packing"].offsets.tolist() == [1, 3, 6]
    assert found["pair"][0].tolist() == [2, 2]
    assert (found["pair"][1], found["number"], found["packing"].longest) == ("kept", 3, 3)
