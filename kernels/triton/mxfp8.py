"""MXFP8 of floats in one pass: a thread holds a block, tries its scales and writes bytes."""

import torch
import triton
import triton.language as tl

from ..mxfp8 import BLOCK, check
from ..tiled_scales import tiled_shape
from ._arch import arch_of
from ._blocks import in_lanes, load8, round_floats, split8, tile_of, tiled_offset
from ._float_bits import to_float8
from ._launch import Launch, cdiv
from ._operands import empty, rows_of
from ._plan import Plan
from ._planned import planned
from ._tiles import magnitude


@triton.jit
def _lost(sizes, exponent, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """The squared error [ROWS, BLOCKS] of blocks, four tiles [ROWS, BLOCKS, 8], under a power of two.

    exponent: as float32 has it, 1 to 254.
    """
    scale = (exponent << 23).to(tl.float32, bitcast=True)
    inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    lanes = tl.zeros((ROWS, BLOCKS, 8), tl.float32)
    for i in tl.static_range(4):
        total, magic = round_floats(tl.minimum(sizes[i] * inverse[:, :, None], 448.0), 3, 0.015625)
        error = (total - magic) * scale[:, :, None] - sizes[i]
        lanes += error * error
    return in_lanes(lanes, ROWS, BLOCKS)


@triton.jit
def _quantize_mxfp8_kernel(
    x_ptr, q_ptr, scale_ptr, N, K, stride_xm, tiles_k, ROWS: tl.constexpr, BLOCKS: tl.constexpr
):
    """Write the bytes and scales of ROWS x BLOCKS blocks of 32 columns."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)[None, :]
    inside = (row < N) & (block < K // 32)
    at = x_ptr + row * stride_xm + block * 32
    pieces = ()
    sizes = ()
    peaks = tl.zeros((ROWS, BLOCKS, 8), tl.int32)
    for i in tl.static_range(4):
        x = load8(at + 8 * i, inside, ROWS, BLOCKS)
        pieces = pieces + (x,)  # type: ignore[assignment]  # noqa: RUF005 - the compiler has no unpacking
        sizes = sizes + (tl.abs(x),)  # type: ignore[assignment]  # noqa: RUF005
        peaks = tl.maximum(peaks, magnitude(x))
    peak = tl.max(peaks, 2)
    # The exponent, as float32 has it, of the power of two that reaches the peak.
    reached = tl.div_rn(peak.to(tl.float32, bitcast=True), 448.0).to(tl.int32, bitcast=True)
    whole = tl.maximum((tl.minimum(reached, 0x7F000000) + 0x7FFFFF) >> 23, 1)
    half = tl.maximum(whole - 1, 1)
    less = _lost(sizes, half, ROWS, BLOCKS) < _lost(sizes, whole, ROWS, BLOCKS)
    found = tl.where(less, half, whole)
    inverse = ((254 - found) << 23).to(tl.float32, bitcast=True)
    words = q_ptr.to(tl.pointer_type(tl.int32)) + row[:, :, None] * (K // 4) + block[:, :, None] * 8
    words += tl.arange(0, 2)[None, None, :]
    for i in tl.static_range(4):
        y = pieces[i] * inverse[:, :, None]
        y = tl.minimum(tl.maximum(y, -448.0), 448.0)
        bits = to_float8(y, "e4m3")
        b0, b1, b2, b3, b4, b5, b6, b7 = split8(tl.where(bits == 128, 0, bits), ROWS, BLOCKS)
        low = b0 | (b1 << 8) | (b2 << 16) | (b3 << 24)
        high = b4 | (b5 << 8) | (b6 << 16) | (b7 << 24)
        tl.store(words + 2 * i, tl.join(low, high), mask=inside[:, :, None])
    stored = tl.where(peak < 0x7F800000, found, 255)
    stored = tl.where(inside, stored, 0).to(tl.uint8)
    tl.store(scale_ptr + tiled_offset(row, block, tiles_k), stored, mask=block < tiles_k * 4)


@planned
def quantize_mxfp8(x) -> Plan:
    """Plan `kernels.quantize_mxfp8`: one launch."""
    n, k = check(x)
    arch = arch_of(x.device)
    rows, columns = tiled_shape(n, k // BLOCK)
    q, scale = empty((n, k), torch.uint8, x.device), empty((rows, columns), torch.uint8, x.device)
    if not n * k:
        return Plan([], (q, scale))
    x, (tile_rows, tile_blocks) = rows_of(x), tile_of(arch)
    args = {
        "x_ptr": x,
        "q_ptr": q,
        "scale_ptr": scale,
        "N": n,
        "K": k,
        "stride_xm": x.stride(0),
        "tiles_k": columns // 4,
        "ROWS": tile_rows,
        "BLOCKS": tile_blocks,
    }
    grid = (cdiv(rows, tile_rows), cdiv(columns, tile_blocks))
    return Plan([Launch(_quantize_mxfp8_kernel, grid, args, 4, 1)], (q, scale))
