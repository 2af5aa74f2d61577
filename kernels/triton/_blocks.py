"""Blocks of columns with a scale each, a block per thread: what the quantizers to small floats share.

A tile is [ROWS, BLOCKS] blocks, and a block comes in pieces of eight columns: 16 bytes of bfloat16, one load.
All of a block lies in the registers of one thread, and its errors are summed in the order of the eager twin
(`kernels.blocks.in_lanes`), so that the same scale wins.
"""

import triton
import triton.language as tl

from ._arch import Arch


def tile_of(arch: Arch) -> tuple[int, int]:
    """Return the rows and blocks that a program takes: a block for each thread of four warps."""
    return (128, 8) if arch.family == "interpreter" else (8, 16)


@triton.jit
def load8(ptr, mask, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """float32 [ROWS, BLOCKS, 8] from pointers [ROWS, BLOCKS], zeros outside `mask`: 16 bytes a load."""
    if ptr.dtype.element_ty == tl.float32:
        at = ptr[:, :, None] + tl.arange(0, 4)[None, None, :]
        low = tl.load(at, mask=mask[:, :, None], other=0.0)
        high = tl.load(at + 4, mask=mask[:, :, None], other=0.0)
        x = tl.reshape(tl.permute(tl.join(low, high), (0, 1, 3, 2)), (ROWS, BLOCKS, 8))
    else:
        at = ptr[:, :, None] + tl.arange(0, 8)[None, None, :]
        x = tl.load(at, mask=mask[:, :, None], other=0.0).to(tl.float32)
    return x


@triton.jit
def split8(x, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """The eight [ROWS, BLOCKS] of a tile [ROWS, BLOCKS, 8]."""
    even, odd = tl.split(tl.reshape(x, (ROWS, BLOCKS, 4, 2)))
    even0, even1 = tl.split(tl.reshape(even, (ROWS, BLOCKS, 2, 2)))
    odd0, odd1 = tl.split(tl.reshape(odd, (ROWS, BLOCKS, 2, 2)))
    x0, x4 = tl.split(even0)
    x2, x6 = tl.split(even1)
    x1, x5 = tl.split(odd0)
    x3, x7 = tl.split(odd1)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def in_lanes(lanes, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """The sum [ROWS, BLOCKS] of [ROWS, BLOCKS, 8], one after the other."""
    x0, x1, x2, x3, x4, x5, x6, x7 = split8(lanes, ROWS, BLOCKS)
    return x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7


@triton.jit
def round_floats(size, DIGITS: tl.constexpr, LEAST: tl.constexpr):
    """size >= 0 (float32) rounded half to even to DIGITS binary digits after the first, with steps as from
    LEAST on.

    Returns (the sum with 1.5 x 2^23 steps, that number): their difference is the value, the low bits of the
    sum count its steps.
    """
    exponent = tl.maximum(size, LEAST).to(tl.int32, bitcast=True) & 0x7F800000
    magic = (exponent + (((23 - DIGITS) << 23) | (1 << 22))).to(tl.float32, bitcast=True)
    return size + magic, magic


@triton.jit
def e4m3_bits(x):
    """int32 bits of the e4m3 values nearest to x (float32), 1 to 126; 126 for NaN."""
    x = tl.where(x == x, tl.minimum(tl.maximum(x, 0.001953125), 448.0), 448.0)
    total, magic = round_floats(x, 3, 0.015625)
    # The exponent of `magic` is 20 above the value's: 107 + e in bits, and 7 + e is e4m3's.
    exponent = (magic.to(tl.int32, bitcast=True) >> 23) - 141
    return (exponent << 3) + (total.to(tl.int32, bitcast=True) & 0x1F)


@triton.jit
def e4m3_value(bits):
    """float32 of e4m3's bits 0 to 126, int32."""
    return (bits << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36


@triton.jit
def tiled_offset(row, column, tiles_k):
    """Where the scale of a row and block lies in cuBLAS' tiles; both int64 or int32 of one shape."""
    tile = (row // 128) * tiles_k + column // 4
    return tile * 512 + 16 * (row % 32) + 4 * ((row % 128) // 32) + column % 4
