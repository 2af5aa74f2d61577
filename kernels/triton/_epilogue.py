"""Turns the raw sums of a matrix product into its result: scales, bias, activation, output type.

Every product kernel here ends with `finish`, on the sums that it still has in registers. Where
sums come from memory instead, `_finish_kernel` is launched to do the same. There are two such
cases: split-K, in which several programs each summed a part of K (integers, so the order in which
the parts are added cannot show), and ``torch._int_mm``, which knows no scales.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from ._launch import Launch, cdiv
from ._operands import Operand
from ._tiles import activate

BLOCK_M = 16
BLOCK_N = 256


class Epilogue(NamedTuple):
    """Operands of the epilogue. out = residual + residual_scale * activation(sum * a_scale * b_scale + bias).

    a_scale: float32, one entry for all rows of the result or one per row; None for 1.
    b_scale: float32, one entry for all columns of the result or one per column (row of the weight); None
        for 1.
    bias: one entry per column, or None. Scales and bias are contiguous.
    residual: contiguous floats [M, N], or None. residual_scale: contiguous, one per column, or None for ones.
    """

    a_scale: Operand | None
    b_scale: Operand | None
    bias: Operand | None
    activation: str | None
    residual: Operand | None = None
    residual_scale: Operand | None = None

    def arguments(self) -> dict:
        """Return them as arguments of a kernel; a stride of 0 repeats the one scale of a tensor."""
        return {
            "a_scale_ptr": self.a_scale,
            "b_scale_ptr": self.b_scale,
            "bias_ptr": self.bias,
            "stride_a_scale": 0 if self.a_scale is None or self.a_scale.numel() == 1 else 1,
            "stride_b_scale": 0 if self.b_scale is None or self.b_scale.numel() == 1 else 1,
            "ACTIVATION": self.activation,
        }

    def all_arguments(self) -> dict:
        """Return them for a kernel that adds a residual."""
        added = {"residual_ptr": self.residual, "residual_scale_ptr": self.residual_scale}
        return {**self.arguments(), **added}


@triton.jit
def finish(
    y,
    offs_m,
    offs_n,
    M,
    N,
    out_ptr,
    stride_om,
    a_scale_ptr,
    b_scale_ptr,
    bias_ptr,
    stride_a_scale,
    stride_b_scale,
    ACTIVATION: tl.constexpr,
    SCALED: tl.constexpr,
    residual_ptr=None,
    residual_scale_ptr=None,
):
    """Store residual + residual_scale * act(y * a_scale * b_scale + bias), y float32 [rows, columns].

    SCALED: y has its scales. The residual is [M, N] and lies as the result does.
    """
    rows, cols = offs_m < M, offs_n < N
    if not SCALED:
        if a_scale_ptr is not None:
            a_scale = tl.load(a_scale_ptr + offs_m * stride_a_scale, mask=rows, other=0.0)
            y *= a_scale[:, None]
        if b_scale_ptr is not None:
            b_scale = tl.load(b_scale_ptr + offs_n * stride_b_scale, mask=cols, other=0.0)
            y *= b_scale[None, :]
    if bias_ptr is not None:
        y += tl.load(bias_ptr + offs_n, mask=cols, other=0.0).to(tl.float32)[None, :]
    y = activate(y, ACTIVATION)
    place = offs_m.to(tl.int64)[:, None] * stride_om + offs_n[None, :]
    inside = rows[:, None] & cols[None, :]
    if residual_ptr is not None:
        if residual_scale_ptr is not None:
            y *= tl.load(residual_scale_ptr + offs_n, mask=cols, other=0.0).to(tl.float32)[None, :]
        y += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _finish_kernel(
    partial_ptr,
    out_ptr,
    a_scale_ptr,
    b_scale_ptr,
    bias_ptr,
    residual_ptr,
    residual_scale_ptr,
    FIRST,
    M,
    N,
    stride_split,
    stride_pm,
    stride_a_scale,
    stride_b_scale,
    ACTIVATION: tl.constexpr,
    SPLIT_K: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Sum SPLIT_K partial products [M - FIRST, N] in order and finish them: rows FIRST to M of the result."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_m = FIRST + rows
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    partial = partial_ptr + rows.to(tl.int64)[:, None] * stride_pm + offs_n[None, :]
    y = tl.load(partial, mask=mask, other=0)
    for _ in range(1, SPLIT_K):
        partial += stride_split
        y += tl.load(partial, mask=mask, other=0)
    finish(
        y.to(tl.float32), offs_m, offs_n, M, N, out_ptr, N, a_scale_ptr, b_scale_ptr, bias_ptr,
        stride_a_scale, stride_b_scale, ACTIVATION, SCALED, residual_ptr, residual_scale_ptr,
    )  # fmt: skip


def launch_finish(
    partial: Operand, out: Operand, epilogue: Epilogue, scaled=False, rows: tuple[int, int] | None = None
) -> Launch:
    """Return the launch that sums partial, int32 or float32 [splits, M, N], into contiguous out [M, N].

    rows: first and last (exclusive) row of out that partial begins with; None for all.
    """
    splits, m, n = partial.shape
    first, stop = rows or (0, m)
    args = {
        "partial_ptr": partial,
        "out_ptr": out,
        "FIRST": first,
        "M": stop,
        "N": n,
        "stride_split": partial.stride(0),
        "stride_pm": partial.stride(1),
        "SPLIT_K": splits,
        "SCALED": scaled,
        "BLOCK_M": BLOCK_M,
        "BLOCK_N": BLOCK_N,
        **epilogue.all_arguments(),
    }
    grid = (cdiv(stop - first, BLOCK_M), cdiv(n, BLOCK_N))
    return Launch(_finish_kernel, grid, args, num_warps=4, num_stages=1)
