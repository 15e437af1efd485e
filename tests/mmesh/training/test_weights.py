"""Tensors are written over those of the same name, and nothing else in the files changes."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is absent: run `make setup-training`")
pytest.importorskip("safetensors", reason="safetensors is absent: run `make setup-training`")

from safetensors.torch import load_file, save_file  # noqa: E402

from mmesh.training.errors import TrainingError  # noqa: E402
from mmesh.training.learners.weights import patch_weights  # noqa: E402

pytestmark = pytest.mark.training


def test_names_need_not_be_whole_and_types_stay(tmp_path) -> None:
    rows = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    first = {"model.layers.0.w": rows.half(), "model.layers.10.w": rows, "other.w": rows + 1}
    save_file(first, tmp_path / "a.safetensors", metadata={"format": "pt"})
    save_file({"head": rows.bfloat16()}, tmp_path / "b.safetensors")
    size = (tmp_path / "a.safetensors").stat().st_size
    patch_weights(tmp_path, [("layers.0.w", rows * 2), ("network.head", rows * 3)])
    found = load_file(tmp_path / "a.safetensors") | load_file(tmp_path / "b.safetensors")
    assert torch.equal(found["model.layers.0.w"], (rows * 2).half())
    assert torch.equal(found["head"], (rows * 3).bfloat16())
    assert torch.equal(found["model.layers.10.w"], rows)
    assert torch.equal(found["other.w"], rows + 1)
    assert (tmp_path / "a.safetensors").stat().st_size == size


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("w", (2, 3), "fits 2 tensors"),
        ("gone", (2, 3), "fits 0 tensors"),
        ("a.w", (4, 3), "has 48 bytes, and 24"),
    ],
)
def test_what_fits_none_or_several_is_refused(tmp_path, name, shape, reason) -> None:
    """As an adapter of another base would."""
    rows = torch.zeros(2, 3)
    save_file({"a.w": rows, "b.w": rows + 1}, tmp_path / "a.safetensors")
    with pytest.raises(TrainingError, match=reason):
        patch_weights(tmp_path, [(name, torch.zeros(shape))])
