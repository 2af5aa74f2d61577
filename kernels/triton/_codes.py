"""Tiles of packed weights made int8 in registers: four weights at a time in one 32-bit word.

With scales per group a 4-bit code is looked up among the 16 integers of its group's scale, which are one
row of a table of 256 scales x 16 bytes (`launch_table`): two byte permutes pick from its halves by the low
three bits of four codes, a third by their top bits. 6 bits are multiplied out in float16, where all of it is
exact: a code less 32 has five bits, an e4m3 scale four, and 1536 + q rounds half to even. All scales are
known by their bits, so that no GPU need know e4m3.

Instructions per weight besides a plain int8 tile's (sm_90, 256 x 128 x 128): 2.8 at 4 bits, 8.2 at 6.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice

from ..decode import Packed
from ._launch import Launch
from ._operands import Operand, empty

STEP = 16
"""Columns that are decoded together: groups and rows are whole numbers of them."""


@triton.jit
def _permute(a, b, selector, NATIVE: tl.constexpr):
    """Byte i is byte (selector >> 4 i) & 7 of a (0 to 3) and b (4 to 7); int32 of one shape."""
    if NATIVE:
        found = libdevice.byte_perm(a, b, selector)
    else:
        found = tl.zeros_like(a)
        for i in tl.static_range(4):
            pick = selector >> (4 * i)
            word = tl.where((pick & 4) != 0, b, a)
            found |= ((word >> ((pick & 3) * 8)) & 255) << (8 * i)
    return found


@triton.jit
def _columns(words, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """int8 [ROWS, COLUMNS] of int32 words [ROWS, .., 2], four columns each."""
    even = tl.join(words.to(tl.int8), (words >> 16).to(tl.int8))
    odd = tl.join((words >> 8).to(tl.int8), (words >> 24).to(tl.int8))
    return tl.reshape(tl.join(even, odd), (ROWS, COLUMNS))


@triton.jit
def _signed(words, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """int8 [ROWS, COLUMNS] of two's complement halves of bytes, words int32 [ROWS, .., 2]."""
    x = words.to(tl.uint32, bitcast=True)
    low = (((x & 0x0F0F0F0F) ^ 0x08080808) + 0x78787878) ^ 0x80808080
    high = ((((x >> 4) & 0x0F0F0F0F) ^ 0x08080808) + 0x78787878) ^ 0x80808080
    even = tl.join((low & 255).to(tl.int8), ((low >> 16) & 255).to(tl.int8))
    even = tl.join(even, tl.join(((low >> 8) & 255).to(tl.int8), (low >> 24).to(tl.int8)))
    odd = tl.join((high & 255).to(tl.int8), ((high >> 16) & 255).to(tl.int8))
    odd = tl.join(odd, tl.join(((high >> 8) & 255).to(tl.int8), (high >> 24).to(tl.int8)))
    return tl.reshape(tl.join(even, odd), (ROWS, COLUMNS))


@triton.jit
def _looked_up(words, table, ROWS: tl.constexpr, COLUMNS: tl.constexpr, NATIVE: tl.constexpr):
    """int8 [ROWS, COLUMNS] of 4-bit codes, words int32 [ROWS, pieces, 2]; table int32 [ROWS, pieces, 4]."""
    PIECES: tl.constexpr = COLUMNS // 16
    codes = tl.join(words, words >> 16)
    first, second = tl.split(tl.reshape(table, (ROWS, PIECES, 2, 2)))
    t0, t2 = tl.split(first)
    t1, t3 = tl.split(second)
    every = tl.zeros((ROWS, PIECES, 2, 2), tl.int32)
    low = codes & 0x7777
    a = _permute(t0[:, :, None, None] + every, t1[:, :, None, None] + every, low, NATIVE)
    b = _permute(t2[:, :, None, None] + every, t3[:, :, None, None] + every, low, NATIVE)
    return _columns(_permute(a, b, ((codes >> 1) & 0x4444) | 0x3210, NATIVE), ROWS, COLUMNS)


@triton.jit
def _rounded(pair, scale):
    """Two 16-bit lanes 0x6400 + code of an int32, times scale (float16): lanes whose low bytes are int8."""
    low = (pair.to(tl.int16).to(tl.float16, bitcast=True) - 1056.0) * scale
    high = ((pair >> 16).to(tl.int16).to(tl.float16, bitcast=True) - 1056.0) * scale
    # To Triton before 3.9 a bare 127.0 is float32, and so is a minimum with it.
    most = tl.full((), 127.0, tl.float16)
    low = tl.minimum(tl.maximum(low, -most), most) + 1536.0
    high = tl.minimum(tl.maximum(high, -most), most) + 1536.0
    lanes = high.to(tl.int16, bitcast=True).to(tl.int32) << 16
    return lanes | low.to(tl.int16, bitcast=True).to(tl.int32)


@triton.jit
def _multiplied(words, tops, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr, NATIVE: tl.constexpr):
    """int8 [ROWS, COLUMNS] of 6-bit codes: words int32 [ROWS, pieces, 2], tops and scale, e4m3's bits,
    int32 [ROWS, pieces]."""
    PIECES: tl.constexpr = COLUMNS // 16
    # e4m3 in the place of float16's exponent is 2^-8 of its value, subnormals too.
    scale = (((scale & 0x80) << 8) | ((scale & 0x7F) << 7)).to(tl.int16).to(tl.float16, bitcast=True) * 256.0
    scale = scale[:, :, None] + tl.zeros((ROWS, PIECES, 2), tl.float16)
    flat = tl.zeros((ROWS, PIECES), tl.int32)
    every = tl.zeros((ROWS, PIECES, 2), tl.int32)
    # Each byte of tops has four columns: doubled, so that each of its copies serves two of them.
    top = tl.join(_permute(tops, tops, flat + 0x1100, NATIVE), _permute(tops, tops, flat + 0x3322, NATIVE))
    even = (words & 0x0F0F0F0F) | ((top << 4) & 0x00300030) | (top & 0x30003000)
    odd = ((words >> 4) & 0x0F0F0F0F) | ((top << 2) & 0x00300030) | ((top >> 2) & 0x30003000)
    high = every + 0x64646464
    even0 = _rounded(_permute(even, high, every + 0x4140, NATIVE), scale)
    even1 = _rounded(_permute(even, high, every + 0x4342, NATIVE), scale)
    odd0 = _rounded(_permute(odd, high, every + 0x4140, NATIVE), scale)
    odd1 = _rounded(_permute(odd, high, every + 0x4342, NATIVE), scale)
    first = _permute(even0, odd0, every + 0x6240, NATIVE)
    return _columns(
        tl.join(first, _permute(even1, odd1, every + 0x6240, NATIVE)), ROWS, COLUMNS
    )  # fmt: skip


@triton.jit
def weight_tile(
    w_ptr,
    group_ptr,
    table_ptr,
    rows,
    pieces,
    stride_w,
    stride_g,
    plane,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    NATIVE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """int8 [ROWS, COLUMNS] of the weight's rows (int64) and pieces of 16 columns (int32 [COLUMNS / 16]).

    stride_w and plane, where the top bits begin, count 32-bit words. GROUP: columns of a scale, 0: none.
    """
    row_ptr = w_ptr.to(tl.pointer_type(tl.int32)) + (rows * stride_w)[:, None]
    words = tl.load(row_ptr[:, :, None] + pieces[None, :, None] * 2 + tl.arange(0, 2)[None, None, :])
    if GROUP == 0:
        q = _signed(words, ROWS, COLUMNS)
    else:
        group = pieces if GROUP == 16 else pieces * 16 // GROUP
        scale = tl.load(group_ptr + (rows * stride_g)[:, None] + group[None, :]).to(tl.int32)
        if BITS == 6:
            tops = tl.load(row_ptr + plane + pieces[None, :])
            q = _multiplied(words, tops, scale, ROWS, COLUMNS, NATIVE)
        else:
            entry = table_ptr.to(tl.pointer_type(tl.int32)) + scale[:, :, None] * 4
            table = tl.load(entry + tl.arange(0, 4)[None, None, :])
            q = _looked_up(words, table, ROWS, COLUMNS, NATIVE)
    return q


@triton.jit
def _table_kernel(codebook_ptr, table_ptr):
    """Write what each of 16 levels becomes under each e4m3 scale, int8 [256, 16]."""
    scale = tl.arange(0, 256)[:, None]
    code = tl.arange(0, 16)[None, :]
    half = (((scale & 0x80) << 8) | ((scale & 0x7F) << 7)).to(tl.int16).to(tl.float16, bitcast=True)
    if codebook_ptr is None:
        level = (code - 8).to(tl.float32)
    else:
        level = tl.load(codebook_ptr + code).to(tl.float32)
    y = level * (half.to(tl.float32) * 256.0)
    y = tl.minimum(tl.maximum(y, -127.0), 127.0)
    q = (y + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)
    tl.store(table_ptr + scale * 16 + code, q)


def launch_table(codebook: Operand | None, device: torch.device) -> tuple[Launch, Operand]:
    """Return the launch that makes the table of 4-bit codes, and the table."""
    table = empty((256, 16), torch.int8, device)
    return Launch(_table_kernel, (1,), {"codebook_ptr": codebook, "table_ptr": table}, 4, 1), table


def arguments(
    qweight: Operand,
    bits: int,
    group_scale: Operand | None,
    table: Operand | None,
    shape: Packed,
    native: bool,
) -> dict:
    """Return a kernel's arguments for `weight_tile`."""
    return {
        "w_ptr": qweight,
        "group_ptr": group_scale,
        "table_ptr": table,
        "stride_w": qweight.stride(0) // 4,
        "stride_g": 0 if group_scale is None else group_scale.stride(0),
        "plane": shape.k // 8,
        "BITS": bits,
        "GROUP": shape.group,
        "NATIVE": native,
    }
