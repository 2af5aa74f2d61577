"""Small floats to wider ones and FP8 of floats: read once, written once."""

import torch
import triton
import triton.language as tl

from .. import _checks
from ..floats import FP8, check_floats, check_quantize
from ..scales import TINY
from ._arch import arch_of
from ._float_bits import float_tile, to_float8
from ._launch import Launch, cdiv
from ._operands import Operand, empty, rows_of
from ._plan import Call, Plan, Step
from ._planned import planned
from .rowwise import CONFIGS, PEAK, launch_rows

ROWS, COLUMNS = 16, 256


@triton.jit
def _dequantize_floats_kernel(
    w_ptr,
    block_ptr,
    scale_ptr,
    out_ptr,
    N,
    K,
    stride_w,
    stride_scale,
    tiles_k,
    KIND: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write a tile of the weight [N, K] as out_ptr's type."""
    offs_n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(offs_n, N - 1).to(tl.int64)
    first = tl.program_id(1) * COLUMNS
    if KIND == "nvfp4":
        y = float_tile(
            w_ptr, block_ptr, scale_ptr, rows, first, K, stride_w, tiles_k, KIND, EVEN, ROWS, COLUMNS
        )
    else:
        y = float_tile(w_ptr, block_ptr, None, rows, first, K, stride_w, tiles_k, KIND, EVEN, ROWS, COLUMNS)
        if scale_ptr is not None:
            y *= tl.load(scale_ptr + rows * stride_scale)[:, None]
    cols = first + tl.arange(0, COLUMNS)
    out = out_ptr + rows[:, None] * K + cols[None, :]
    tl.store(out, y.to(out_ptr.dtype.element_ty), mask=(offs_n < N)[:, None] & (cols < K)[None, :])


def weight_arguments(q: Operand, kind: str, block_scale: Operand | None) -> dict:
    """Return a kernel's arguments for `float_tile`."""
    return {
        "w_ptr": q,
        "block_ptr": block_scale,
        "stride_w": q.stride(0),
        "tiles_k": 0 if block_scale is None else block_scale.shape[1] // 4,
        "KIND": kind,
    }


def contiguous_columns(q: Operand) -> Operand:
    """Return q, copied where its columns are not contiguous."""
    return q if q.stride(1) == 1 or q.shape[1] == 1 else q.contiguous()


@planned
def dequantize_floats(q, kind, scale, block_scale, dtype) -> Plan:
    """Plan `kernels.dequantize_floats`: one launch."""
    n, k = check_floats(q, kind, scale, block_scale)
    if dtype not in _checks.FLOATS:
        raise TypeError(f"dtype must be float32, float16 or bfloat16, not {dtype}")
    arch_of(q.device)
    out = empty((n, k), dtype, q.device)
    if not n * k:
        return Plan([], out)
    block_scale = None if block_scale is None else block_scale.contiguous()
    args = {
        **weight_arguments(contiguous_columns(q), kind, block_scale),
        "scale_ptr": None if scale is None else scale.float().contiguous(),
        "out_ptr": out,
        "N": n,
        "K": k,
        "stride_scale": 0 if scale is None or scale.numel() == 1 else 1,
        "EVEN": k % COLUMNS == 0,
        "ROWS": ROWS,
        "COLUMNS": COLUMNS,
    }
    launch = Launch(_dequantize_floats_kernel, (cdiv(n, ROWS), cdiv(k, COLUMNS)), args, 4, 1)
    return Plan([launch], out)


@triton.jit
def _quantize_float8_kernel(
    x_ptr, q_ptr, scale_ptr, K, stride_xm, MOST: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr
):
    """Write a part of one row, rounded to FP8."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride_xm + cols, mask=cols < K, other=0.0).to(tl.float32)
    y = x * tl.div_rn(1.0, tl.load(scale_ptr))
    y = tl.where(y == y, tl.minimum(tl.maximum(y, -MOST), MOST), y)
    tl.store(q_ptr + row * K + cols, to_float8(y, KIND).to(tl.uint8), mask=cols < K)


def _scale_of_all(result: torch.Tensor, per_row: torch.Tensor, most: float) -> None:
    peak = per_row.amax() if per_row.numel() else torch.zeros_like(result)
    result.copy_((peak / peak.new_full((), most)).clamp_min(TINY))


def _copy(result: torch.Tensor, given: torch.Tensor) -> None:
    result.copy_(given.reshape(()))


def to_fp8(rows: Operand, kind: str, scale: Operand | None, q: Operand, result: Operand) -> list[Step]:
    """Return the steps that round rows [M, K] into bytes q [M, K], with the scale that they put in result."""
    m, k = rows.shape
    most = torch.finfo(FP8[kind]).max
    first: list[Step] = [] if scale is None else [Call(_copy, result, scale)]
    if scale is None:
        per_row = empty((m,), torch.float32, rows.device)
        if m:
            first = [launch_rows(CONFIGS[0], rows, q, per_row, mode=PEAK)]
        first = [*first, Call(_scale_of_all, result, per_row, most)]
    if not m:
        return first
    block = 1024
    args = {
        "x_ptr": rows,
        "q_ptr": q,
        "scale_ptr": result,
        "K": k,
        "stride_xm": rows.stride(0),
        "MOST": most,
        "KIND": kind,
        "BLOCK": block,
    }
    return [*first, Launch(_quantize_float8_kernel, (m, cdiv(k, block)), args, 4, 1)]


@planned
def quantize_float8(x, kind, scale=None) -> Plan:
    """Plan `kernels.quantize_float8`: two launches and a reduction, one launch with a given scale."""
    check_quantize(x, kind, scale)
    arch_of(x.device)
    q, result = empty(x.shape, torch.uint8, x.device), empty((), torch.float32, x.device)
    return Plan(to_fp8(rows_of(x), kind, scale, q, result), (q, result))
