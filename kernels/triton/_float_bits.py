"""Small floats by their bits, in integer arithmetic: every GPU and the interpreter give the same values."""

import triton
import triton.language as tl


@triton.jit
def e4m3(bits):
    """float32 of e4m3 values given as int32 0 to 255; 127 and 255 are NaN."""
    y = (((bits & 0x80) << 24) | ((bits & 0x7F) << 20)).to(tl.float32, bitcast=True) * 1.329227995784916e36
    return tl.where((bits & 0x7F) == 0x7F, float("nan"), y)


@triton.jit
def e5m2(bits):
    """float32 of e5m2 values given as int32 0 to 255: the upper half of float16."""
    return (bits << 8).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def e2m1(bits):
    """float32 of e2m1 values given as int32 0 to 15."""
    half = (((bits & 8) << 12) | ((bits & 7) << 9)).to(tl.int16).to(tl.float16, bitcast=True)
    return half.to(tl.float32) * 16384.0


@triton.jit
def e8m0(bits):
    """float32 of powers of two given as int32 0 to 255: 0 is zero, 255 NaN."""
    return tl.where(bits == 255, float("nan"), (bits << 23).to(tl.float32, bitcast=True))


@triton.jit
def to_float8(y, KIND: tl.constexpr):
    """int32 bits of float32 rounded to FP8 half to even; |y| at most the type's largest, or NaN."""
    SHIFT: tl.constexpr = 20 if KIND == "e4m3" else 21
    BIAS: tl.constexpr = 960 if KIND == "e4m3" else 448
    raw = y.to(tl.int32, bitcast=True)
    size = raw & 0x7FFFFFFF
    normal = ((size + ((1 << (SHIFT - 1)) - 1) + ((size >> SHIFT) & 1)) >> SHIFT) - BIAS
    # Below the least normal number steps are equal: the sum with 1.5 x 2^23 of them rounds to one.
    if KIND == "e4m3":
        least = 0x3C800000
        step = tl.abs(y) * 512.0
    else:
        least = 0x38800000
        step = tl.abs(y) * 65536.0
    small = (step + 12582912.0).to(tl.int32, bitcast=True) & 0xFF
    found = tl.where(size < least, small, normal)
    found = tl.where(size > 0x7F800000, 0x7F, found)
    return ((raw >> 24) & 0x80) | found


@triton.jit
def float_tile(
    w_ptr,
    block_ptr,
    whole_ptr,
    rows,
    first,
    K,
    stride_w,
    tiles_k,
    KIND: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """float32 [ROWS, COLUMNS] of a weight's rows (int64) from column `first` on, blocks' scales applied.

    whole_ptr: a scale in all that multiplies those of blocks, or None. KIND: as in `floats`; EVEN: all
    columns are inside K, else those beyond are 0. tiles_k: tiles of blocks' scales in a row of them.
    """
    row_ptr = w_ptr + (rows * stride_w)[:, None]
    if KIND == "nvfp4":
        cols = (first // 2 + tl.arange(0, COLUMNS // 2))[None, :]
        if EVEN:
            pairs = tl.load(row_ptr + cols).to(tl.int32)
        else:
            pairs = tl.load(row_ptr + cols, mask=cols < K // 2, other=0).to(tl.int32)
        y = tl.reshape(tl.join(e2m1(pairs >> 4), e2m1(pairs & 15)), (ROWS, COLUMNS))
    else:
        cols = (first + tl.arange(0, COLUMNS))[None, :]
        if EVEN:
            bits = tl.load(row_ptr + cols).to(tl.int32)
        else:
            bits = tl.load(row_ptr + cols, mask=cols < K, other=0).to(tl.int32)
        y = e5m2(bits) if KIND == "e5m2" else e4m3(bits)
    if KIND == "mxfp8" or KIND == "nvfp4":
        BLOCK: tl.constexpr = 32 if KIND == "mxfp8" else 16
        column = (first // BLOCK + tl.arange(0, COLUMNS // BLOCK))[None, :]
        row = rows[:, None]
        tile = (row // 128) * tiles_k + column // 4
        at = block_ptr + tile * 512 + 16 * (row % 32) + 4 * ((row % 128) // 32) + column % 4
        if EVEN:
            scale = tl.load(at).to(tl.int32)
        else:
            scale = tl.load(at, mask=column < K // BLOCK, other=0).to(tl.int32)
        scale = e8m0(scale) if KIND == "mxfp8" else e4m3(scale)
        if whole_ptr is not None:
            scale *= tl.load(whole_ptr)
        y = tl.reshape(y, (ROWS, COLUMNS // BLOCK, BLOCK)) * scale[:, :, None]
        y = tl.reshape(y, (ROWS, COLUMNS))
    return y
