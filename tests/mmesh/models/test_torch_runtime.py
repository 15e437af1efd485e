"""What torch families share: refused settings, memory that runs out, and unit length."""

from __future__ import annotations

import importlib.util
import weakref

import numpy as np
import pytest

from mmesh.errors import FailedPrecondition, InternalError
from mmesh.models.protocol import OutOfDeviceMemory

pytestmark = [
    pytest.mark.models,
    pytest.mark.skipif(
        importlib.util.find_spec("torch") is None, reason="torch is absent: run `make setup-models`"
    ),
]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"device": "cuda:99"}, "no device 'cuda:99'"),
        ({"device": "meta"}, "not supported"),
        ({"device": "nowhere"}, "knows no device"),
        ({"dtype": "int3"}, "dtype 'int3' is unknown"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, str], problem: str) -> None:
    from mmesh.models.torch_runtime import Runtime

    with pytest.raises(FailedPrecondition, match=problem):
        Runtime(**settings)


def test_a_pass_that_runs_out_of_memory_frees_what_it_held() -> None:
    import torch

    from mmesh.models.torch_runtime import Runtime

    held = []

    def grow() -> None:
        tensor = torch.ones(4)
        held.append(weakref.ref(tensor))
        torch.empty(1 << 46)

    with pytest.raises(OutOfDeviceMemory) as failure, Runtime().forward_pass():
        grow()
    assert "allocate" in str(failure.value)
    assert held[0]() is None


def test_other_errors_of_a_pass_stay_what_they_are() -> None:
    import torch

    from mmesh.models.torch_runtime import Runtime

    with pytest.raises(RuntimeError, match="size of tensor"), Runtime().forward_pass():
        torch.ones(2) + torch.ones(3)


def test_rows_get_unit_length_in_float32() -> None:
    import torch

    from mmesh.models.torch_runtime import Runtime

    def doubled(rows: torch.Tensor) -> torch.Tensor:
        return rows * 2

    rows = torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=torch.bfloat16)
    found = Runtime().unit_rows(doubled, rows)
    np.testing.assert_array_equal(found, np.array([[0.6, 0.8], [0.0, 1.0]], np.float32))
    for broken in (0.0, float("nan"), float("inf")):
        with pytest.raises(InternalError):
            Runtime().unit_rows(doubled, torch.tensor([[broken, 0.0]]))
