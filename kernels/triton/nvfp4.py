"""NVFP4 of floats: a pass for the scale in all; then a thread holds a block, tries its scales and packs."""

import torch
import triton
import triton.language as tl

from ..nvfp4 import BLOCK, check, scale_in_all
from ..tiled_scales import tiled_shape
from ._arch import arch_of
from ._blocks import (
    e4m3_bits,
    e4m3_value,
    in_lanes,
    load8,
    round_floats,
    split8,
    tile_of,
    tiled_offset,
)
from ._launch import Launch, cdiv
from ._operands import Operand, empty, rows_of
from ._plan import Call, Plan, Step
from ._planned import planned
from ._tiles import magnitude
from .rowwise import CONFIGS, PEAK, launch_rows


@triton.jit
def _word(size, x, inverse, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """int32 [ROWS, BLOCKS] of eight e2m1 values, the even column in the high half of each byte."""
    total, magic = round_floats(tl.minimum(size * inverse[:, :, None], 6.0), 1, 1.0)
    # 22 above the value's, the exponent of `magic` is 149 for 1 to 2.
    exponent = (magic.to(tl.int32, bitcast=True) >> 23) - 149
    code = (total.to(tl.int32, bitcast=True) & 7) + 2 * exponent
    code |= tl.where((x < 0.0) & (code != 0), 8, 0)
    c0, c1, c2, c3, c4, c5, c6, c7 = split8(code, ROWS, BLOCKS)
    low = (c0 << 4) | c1 | (c2 << 12) | (c3 << 8)
    return low | (c4 << 20) | (c5 << 16) | (c6 << 28) | (c7 << 24)


@triton.jit
def _quantize_nvfp4_kernel(
    x_ptr, whole_ptr, q_ptr, scale_ptr, N, K, stride_xm, tiles_k, ROWS: tl.constexpr, BLOCKS: tl.constexpr
):
    """Write the bytes and scales of ROWS x BLOCKS blocks of 16 columns."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)[None, :]
    inside = (row < N) & (block < K // 16)
    at = x_ptr + row * stride_xm + block * 16
    x0 = load8(at, inside, ROWS, BLOCKS)
    x1 = load8(at + 8, inside, ROWS, BLOCKS)
    size0 = tl.abs(x0)
    size1 = tl.abs(x1)
    peak = tl.max(tl.maximum(magnitude(x0), magnitude(x1)), 2)
    whole = tl.load(whole_ptr)
    start = e4m3_bits(tl.div_rn(peak.to(tl.float32, bitcast=True), whole * 6.0))
    found = start
    best = tl.zeros((ROWS, BLOCKS), tl.float32)
    for i in tl.static_range(5):
        # 0, 1, -1, 4, 5: as `nvfp4.MOVES` of the twin
        tried = start + (i if i < 2 else (-1 if i == 2 else i + 1))
        tried = tl.minimum(tl.maximum(tried, 1), 126)
        scale = e4m3_value(tried) * whole
        inverse = tl.div_rn(1.0, scale)
        total, magic = round_floats(tl.minimum(size0 * inverse[:, :, None], 6.0), 1, 1.0)
        error = (total - magic) * scale[:, :, None] - size0
        lanes = error * error
        total, magic = round_floats(tl.minimum(size1 * inverse[:, :, None], 6.0), 1, 1.0)
        error = (total - magic) * scale[:, :, None] - size1
        lost = in_lanes(lanes + error * error, ROWS, BLOCKS)
        if i == 0:
            best = lost
        else:
            less = lost < best
            best = tl.where(less, lost, best)
            found = tl.where(less, tried, found)
    inverse = tl.div_rn(1.0, e4m3_value(found) * whole)
    words = tl.join(_word(size0, x0, inverse, ROWS, BLOCKS), _word(size1, x1, inverse, ROWS, BLOCKS))
    out = q_ptr.to(tl.pointer_type(tl.int32)) + row[:, :, None] * (K // 8) + block[:, :, None] * 2
    tl.store(out + tl.arange(0, 2)[None, None, :], words, mask=inside[:, :, None])
    stored = tl.where(peak < 0x7F800000, found, 127)
    stored = tl.where(inside, stored, 0).to(tl.uint8)
    tl.store(scale_ptr + tiled_offset(row, block, tiles_k), stored, mask=block < tiles_k * 4)


def _scale_of(result: torch.Tensor, per_row: torch.Tensor) -> None:
    result.copy_(scale_in_all(per_row.amax() if per_row.numel() else torch.zeros_like(result)))


def _copy(result: torch.Tensor, given: torch.Tensor) -> None:
    result.copy_(given.reshape(()))


@planned
def quantize_nvfp4(x, scale: Operand | None = None) -> Plan:
    """Plan `kernels.quantize_nvfp4`: two launches and a reduction; one launch with a given scale."""
    n, k = check(x, scale)
    arch = arch_of(x.device)
    rows, columns = tiled_shape(n, k // BLOCK)
    q, stored = empty((n, k // 2), torch.uint8, x.device), empty((rows, columns), torch.uint8, x.device)
    whole = empty((), torch.float32, x.device)
    steps: list[Step] = []
    x = rows_of(x)
    if scale is not None:
        steps.append(Call(_copy, whole, scale))
    else:
        per_row = empty((n if k else 0,), torch.float32, x.device)
        if n * k:
            steps.append(launch_rows(CONFIGS[0], x, q, per_row, mode=PEAK))
        steps.append(Call(_scale_of, whole, per_row))
    if n * k:
        tile_rows, tile_blocks = tile_of(arch)
        args = {
            "x_ptr": x,
            "whole_ptr": whole,
            "q_ptr": q,
            "scale_ptr": stored,
            "N": n,
            "K": k,
            "stride_xm": x.stride(0),
            "tiles_k": columns // 4,
            "ROWS": tile_rows,
            "BLOCKS": tile_blocks,
        }
        grid = (cdiv(rows, tile_rows), cdiv(columns, tile_blocks))
        steps.append(Launch(_quantize_nvfp4_kernel, grid, args, 4, 1))
    return Plan(steps, (q, stored, whole))
