"""int4 rows of floats in one pass: a row is read once, its scale searched in registers, codes packed."""

import torch
import triton
import triton.language as tl

from ..int4 import check
from ._arch import arch_of
from ._launch import Launch
from ._operands import empty, rows_of
from ._plan import Plan
from ._planned import planned
from ._rows import rounded, row_arguments, row_tiles, store_pairs, total
from ._tiles import magnitude

ELEMENTS = 32
"""Of a row that a thread should hold."""


@triton.jit
def _lost(tiles, scale, CHUNKS: tl.constexpr):
    """The squared error of a row's tiles under a scale."""
    inverse = tl.div_rn(1.0, scale)
    errors = tl.zeros(tiles[0].shape, tl.float32)
    for c in tl.static_range(CHUNKS):
        code = rounded(tl.minimum(tl.maximum(tiles[c] * inverse, -7.0), 7.0))
        error = code * scale - tiles[c]
        errors += error * error
    return total(errors)


@triton.jit
def _better(tiles, start, share, best, tried, CHUNKS: tl.constexpr):
    """(share, squared error), of `tried` where that loses less."""
    lost = _lost(tiles, start * tried, CHUNKS)
    less = lost < best
    return tl.where(less, tried, share), tl.where(less, lost, best)


@triton.jit
def _quantize_int4_kernel(
    x_ptr,
    q_ptr,
    scale_ptr,
    stride_xm,
    K,
    ROTATION: tl.constexpr,
    PARTS: tl.constexpr,
    MMA: tl.constexpr,
    G: tl.constexpr,
    QUARTERS: tl.constexpr,
    CHUNKS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Quantize one row per program, as `int4.clipped_scale` of the twin searches its scale."""
    row = tl.program_id(0).to(tl.int64)
    tiles = row_tiles(x_ptr + row * stride_xm, K, ROTATION, PARTS, MMA, G, QUARTERS, CHUNKS, EVEN)
    peaks = tl.zeros((G, 16, 16), tl.int32)
    for c in tl.static_range(CHUNKS):
        peaks = tl.maximum(peaks, magnitude(tiles[c]))
    peak = tl.max(tl.reshape(peaks, (G * 256,)), 0)
    start = tl.div_rn(peak.to(tl.float32, bitcast=True), 7.0)
    start = tl.where(start < 1e-30, 1e-30, start)
    best = _lost(tiles, start, CHUNKS)
    share = tl.full((), 1.0, tl.float32)
    for i in tl.static_range(6):
        tried = (
            0.9 if i == 0 else 0.8 if i == 1 else 0.7 if i == 2 else 0.6 if i == 3 else 0.5 if i == 4 else 0.4
        )
        share, best = _better(tiles, start, share, best, tried, CHUNKS)
    for i in tl.static_range(3):
        step = 0.05 if i == 0 else 0.025 if i == 1 else 0.0125
        centre = share
        share, best = _better(tiles, start, share, best, centre + step, CHUNKS)
        share, best = _better(tiles, start, share, best, centre - step, CHUNKS)
    scale = start * share
    tl.store(scale_ptr + row, scale)
    inverse = tl.div_rn(1.0, scale)
    for c in tl.static_range(CHUNKS):
        code = tl.minimum(tl.maximum(tiles[c] * inverse, -7.0), 7.0) + 12582912.0
        store_pairs(q_ptr + row * (K // 2), c, code.to(tl.int32, bitcast=True), K, G, QUARTERS, EVEN)


@planned
def quantize_int4(x, rotation=0) -> Plan:
    """Plan `kernels.quantize_int4`: one launch."""
    n, k = check(x, rotation)
    arch = arch_of(x.device)
    q, scale = empty((n, k // 2), torch.int8, x.device), empty((n, 1), torch.float32, x.device)
    rows = rows_of(x)
    warps, args = row_arguments(arch, rows, rotation, ELEMENTS)
    if not n:
        return Plan([], (q, scale))
    args |= {"q_ptr": q, "scale_ptr": scale}
    return Plan([Launch(_quantize_int4_kernel, (n,), args, warps, 1)], (q, scale))
