"""W4A8 and W6A8 of floats in one pass: a row is read once, its groups' scales searched in registers, packed.

A group is the last axis of a tile. The levels of 4 bits are climbed: a weight has passed a level when it is
beyond the middle between it and the one before. Those of 6 bits are evenly spaced before they are rounded, so
the nearest is among three.
"""

import torch
import triton
import triton.language as tl

from .._library import Unsupported
from ..decoded import check
from ..packing import row_bytes
from ._arch import arch_of
from ._blocks import e4m3_bits, e4m3_value
from ._launch import Launch
from ._operands import empty, rows_of
from ._plan import Plan
from ._planned import planned
from ._rows import piece_numbers, piece_offsets, rounded, row_arguments, row_tiles, store_pairs
from ._tiles import magnitude

ELEMENTS = 24
"""Of a row that a thread should hold."""

GROUP = 16


@triton.jit
def _level(i: tl.constexpr):
    """The default codebook, as `decoded.CODEBOOK` of the twin."""
    if i < 4:
        y = -0.980602 if i == 0 else -0.794529 if i == 1 else -0.638165 if i == 2 else -0.500986
    elif i < 8:
        y = -0.377321 if i == 4 else -0.263187 if i == 5 else -0.155210 if i == 6 else -0.050720
    elif i < 12:
        y = 0.052541 if i == 8 else 0.156985 if i == 9 else 0.265284 if i == 10 else 0.379533
    else:
        y = 0.502636 if i == 12 else 0.638953 if i == 13 else 0.794876 if i == 14 else 0.980671
    return y


@triton.jit
def _integer(product):
    """round_half_even(product) within +-127."""
    return rounded(tl.minimum(tl.maximum(product, -127.0), 127.0))


@triton.jit
def _nearest4(target, scale):
    """(The nearest integer, the lowest code 0 to 15 of it) under group scales [G, 16]; float32."""
    before = _integer(scale * _level(0))
    integer = before[:, :, None] + target * 0.0
    code = target * 0.0
    for i in tl.static_range(1, 16):
        level = _integer(scale * _level(i))
        passed = target >= ((before + level) * 0.5)[:, :, None]
        integer = tl.where(passed, level[:, :, None], integer)
        code = tl.where(passed & (level > before)[:, :, None], i * 1.0, code)
        before = level
    return integer, code


@triton.jit
def _nearest6(target, scale):
    """(The nearest integer, the lowest code -31 to 31 of it) under group scales [G, 16]; float32."""
    inverse = tl.div_rn(1.0, scale)[:, :, None]
    scale = scale[:, :, None]
    # What counts is the middle of the half step that holds the target. Less 0.25 and doubled, it lies on a
    # whole number or a quarter above one at least: rounding is taking the floor.
    half = target * 2.0
    down = rounded(half)
    middle = tl.where(down > half, down - 1.0, down) * 0.5 + 0.25
    guess = rounded(tl.minimum(tl.maximum(target * inverse, -31.0), 31.0))
    integer = _integer(guess * scale)
    for i in tl.static_range(2):
        other = tl.minimum(tl.maximum(guess + (2 * i - 1), -31.0), 31.0)
        other = _integer(other * scale)
        integer = tl.where(tl.abs(other - middle) < tl.abs(integer - middle), other, integer)
    return integer, guess


@triton.jit
def _code6(integer, guess, scale):
    """The lowest code -31 to 31 that decodes to an integer, float32."""
    inverse = tl.div_rn(1.0, scale)[:, :, None]
    scale = scale[:, :, None]
    first = tl.maximum(rounded((integer - 0.5) * inverse), -30.0)
    code = guess
    for i in tl.static_range(4):
        tried = first + (2 - i)
        fits = (_integer(tried * scale) == integer) & (tl.abs(tried) <= 31.0)
        code = tl.where(fits, tried, code)
    return code


@triton.jit
def _quantize_decoded_kernel(
    x_ptr,
    q_ptr,
    rel_ptr,
    row_ptr,
    stride_xm,
    K,
    BITS: tl.constexpr,
    ROTATION: tl.constexpr,
    PARTS: tl.constexpr,
    MMA: tl.constexpr,
    G: tl.constexpr,
    QUARTERS: tl.constexpr,
    CHUNKS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Quantize one row per program."""
    row = tl.program_id(0).to(tl.int64)
    tiles = row_tiles(x_ptr + row * stride_xm, K, ROTATION, PARTS, MMA, G, QUARTERS, CHUNKS, EVEN)
    TOP: tl.constexpr = 0.980671 if BITS == 4 else 31.0
    PEAK: tl.constexpr = 0.980671 * 128.0 if BITS == 4 else 124.0
    peaks = tl.zeros((G, 16, 16), tl.int32)
    for c in tl.static_range(CHUNKS):
        peaks = tl.maximum(peaks, magnitude(tiles[c]))
    peak = tl.max(tl.reshape(peaks, (G * 256,)), 0)
    channel = tl.div_rn(peak.to(tl.float32, bitcast=True), PEAK)
    channel = tl.where(channel < 1e-30, 1e-30, channel)
    tl.store(row_ptr + row, channel)
    inverse = tl.div_rn(1.0, channel)
    reach = channel * TOP
    q_ptr += row * (K * BITS // 8)
    for c in tl.static_range(CHUNKS):
        target = tiles[c] * inverse
        group = tl.max(magnitude(tiles[c]), 2).to(tl.float32, bitcast=True)
        start = e4m3_bits(tl.div_rn(group, reach))
        found = start
        best = tl.zeros((G, 16), tl.float32)
        for i in tl.static_range(3):
            # 0, 1, -1 at 4 bits and 1, 0, 2 at 6: as `decoded.MOVES` of the twin
            move = (i if i < 2 else -1) if BITS == 4 else (1 - i if i < 2 else 2)
            tried = tl.minimum(tl.maximum(start + move, 1), 126)
            if BITS == 4:
                integer, _ = _nearest4(target, e4m3_value(tried))
            else:
                integer, _ = _nearest6(target, e4m3_value(tried))
            error = integer - target
            lost = tl.sum(error * error, 2)
            if i == 0:
                best = lost
                found = tried
            else:
                less = lost < best
                best = tl.where(less, lost, best)
                found = tl.where(less, tried, found)
        at = piece_numbers(c, G, QUARTERS) * 16 + tl.arange(0, 16)[None, :]
        inside = at < K // 16
        tl.store(rel_ptr + row * (K // 16) + at, found.to(tl.uint8), mask=inside)
        scale = e4m3_value(found)
        if BITS == 4:
            _, code = _nearest4(target, scale)
            store_pairs(q_ptr, c, code.to(tl.int32), K, G, QUARTERS, EVEN)
        else:
            integer, guess = _nearest6(target, scale)
            code = (_code6(integer, guess, scale) + 32.0).to(tl.int32)
            store_pairs(q_ptr, c, code, K, G, QUARTERS, EVEN)
            low, high = tl.split(tl.reshape(code >> 4, (G, 16, 4, 2, 2)))
            top0, top2 = tl.split(low)
            top1, top3 = tl.split(high)
            four = piece_offsets(c, G, QUARTERS, 4)
            tops = (top0 | (top1 << 2) | (top2 << 4) | (top3 << 6)).to(tl.int8)
            tl.store(q_ptr + K // 2 + four, tops, mask=four < K // 4)


@planned
def quantize_decoded(x, bits, group=16, rotation=0) -> Plan:
    """Plan `kernels.quantize_decoded`: one launch."""
    n, k = check(x, bits, group, rotation)
    if group != GROUP:
        raise Unsupported(f"groups of {group} columns are not the {GROUP} that a tile holds")
    arch = arch_of(x.device)
    q = empty((n, row_bytes(k, bits)), torch.int8, x.device)
    s_rel = empty((n, k // group), torch.uint8, x.device)
    s_channel = empty((n, 1), torch.float32, x.device)
    rows = rows_of(x)
    warps, args = row_arguments(arch, rows, rotation, ELEMENTS)
    if not n:
        return Plan([], (q, s_rel, s_channel))
    args |= {"q_ptr": q, "rel_ptr": s_rel, "row_ptr": s_channel, "BITS": bits}
    launch = Launch(_quantize_decoded_kernel, (n,), args, warps, 1)
    return Plan([launch], (q, s_rel, s_channel))
