"""What the card can do at most, and whether a row of a product depends on the rows beside it."""

from __future__ import annotations

import torch
from section import Found, Options, seconds_of

from mmesh.models.torch_runtime import Runtime

ROWS = (16, 64, 128, 256, 512, 1024, 2048, 8192, 32768)


def measure(options: Options, found: Found) -> None:
    """Measure the peaks of a matrix product and of a copy."""
    found.row("copy in memory", gb_per_s=copy_gb_per_s(options))
    if options.is_cuda:
        found.row("copy from pinned memory", gb_per_s=_upload_gb_per_s(options))
    for what, runtime in (("as torch does", None), ("without split sums", Runtime)):
        if runtime is not None:
            runtime(options.device)
        found.row(f"product of matrices, {what}", tflops=peak_tflops(options))
        for inner, outer in ((2048, 1024), (6144, 2048), (12288, 4096), (32768, 4096)):
            _row_invariance(options, found, inner, outer, what)


def peak_tflops(options: Options) -> float:
    """Return 10^12 operations a second of a square product in bfloat16."""
    size = 256 if options.small else 8192
    one, other = (
        torch.randn(size, size, device=options.device, dtype=torch.bfloat16) for _ in range(2)
    )
    return 2e-12 * size**3 / seconds_of(options.device, lambda: one @ other, inner=5)


def copy_gb_per_s(options: Options) -> float:
    """Return bytes read and written, in 10^9 a second."""
    count = 1 << (20 if options.small else 31)
    one = torch.empty(count, device=options.device, dtype=torch.uint8).fill_(7)
    other = torch.empty_like(one)
    return 2e-9 * count / seconds_of(options.device, lambda: other.copy_(one))


def _upload_gb_per_s(options: Options) -> float:
    count = 1 << 28
    host = torch.empty(count, dtype=torch.uint8).pin_memory()
    there = torch.empty(count, device=options.device, dtype=torch.uint8)
    return 1e-9 * count / seconds_of(options.device, lambda: there.copy_(host, non_blocking=True))


def _row_invariance(options: Options, found: Found, inner: int, outer: int, what: str) -> None:
    """Tell for which numbers of rows the first ones are, bit by bit, those among many others."""
    most = 1024 if options.small else ROWS[-1]
    if options.small:
        inner, outer = inner // 8, outer // 8
    rows = torch.randn(most, inner, device=options.device, dtype=torch.bfloat16)
    weight = torch.randn(outer, inner, device=options.device, dtype=torch.bfloat16) / inner**0.5
    whole = rows @ weight.T
    differing = [
        count
        for count in ROWS
        if count < most and not torch.equal(rows[:count] @ weight.T, whole[:count])
    ]
    found.row(
        f"rows of {inner} to {outer}, {what}", differ_at=" ".join(map(str, differing)) or "none"
    )
