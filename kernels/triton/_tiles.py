"""Tile arithmetic shared by the kernels: scales, rounding, activations and the rotation.

A row is handled in pieces of 256 neighbouring columns. The regular Hadamard of 256 is the Kronecker
product of four of order 4, one for each base-4 digit of the column, so any order of the digits will do.
The one taken here is that of a tensor-core instruction's operands: a thread that reads 8 neighbouring
columns (16 bytes of 16-bit floats) holds its part of the right operand of H @ x; the accumulator is, as
(..)^T, register for register the right operand of the second product; and that one's accumulator holds
8 neighbouring columns again. So nothing moves between threads from the load to the store
(`bench/kernels --rows` counts it). Other vendors' operands lie otherwise: without MMA the digits are
taken in their own order, and the compiler moves what must be moved.

Tiles in memory's order are [G, 4, 2, 4, 8]: G pieces; 64, 8, 16 and 1 columns apart.
"""

import triton
import triton.language as tl

# Numbers stand in the functions: Triton compares every global of a kernel at each of its launches.


@triton.jit
def magnitude(x):
    """|x| (float32) as the int32 of its bits: orders like the float, and NaN is the largest."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def largest(peaks, x, MMA: tl.constexpr):
    """The larger of peaks, at least 0 or NaN, and |x|, in float32; NaN where either is.

    One instruction on NVIDIA's GPUs. AMD's take three for a maximum that keeps NaN, and two for integers.
    """
    if MMA:
        y = tl.maximum(peaks, tl.abs(x), propagate_nan=tl.PropagateNan.ALL)
    else:
        y = tl.maximum(peaks.to(tl.int32, bitcast=True), magnitude(x)).to(tl.float32, bitcast=True)
    return y


@triton.jit
def scale_from_peak(peak):
    """`scales.scale_from_absmax` of a `magnitude`: the IEEE quotient by 127, at least TINY, NaN kept."""
    scale = tl.div_rn(peak.to(tl.float32, bitcast=True), 127.0)
    return tl.where(scale < 1e-30, 1e-30, scale)


@triton.jit
def to_int8(x, inverse):
    """round_half_even(x * inverse) as int8, for products within +-127.5.

    The number is 1.5 * 2 ** 23: the sum rounds half to even, and its low byte is the int8 value.
    """
    return (x * inverse + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def to_int8_saturated(x, inverse):
    """As `to_int8`, clipped to +-127, and NaN to 0: for a scale that did not come from this x."""
    y = x * inverse
    y = tl.where(y == y, tl.minimum(tl.maximum(y, -127.0), 127.0), 0.0)
    return (y + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def _over_one_plus_power(x, exponent):
    """x / (1 + 2 ** exponent). The square of an inverse root takes three instructions, a quotient eight."""
    root = tl.rsqrt(1.0 + tl.exp2(exponent))
    return x * (root * root)


@triton.jit
def _gelu(x):
    """x * Phi(x) as max(x, 0) - |x| * Phi(-|x|), and Phi(-a) as 2 ** polynomial: 4e-8 off at most.

    The polynomial's weighted minimax fit on [0, 5.2] falls without end beyond. Infinities give NaN.
    """
    a = tl.abs(x)
    p = tl.fma(a, -2.8349115837045247e-06, 3.9377679058816284e-05)
    p = tl.fma(a, p, -0.0001861801720224321)
    p = tl.fma(a, p, -0.00013693651999346912)
    p = tl.fma(a, p, 0.0070634204894304276)
    p = tl.fma(a, p, -0.052496179938316345)
    p = tl.fma(a, p, -0.4592081904411316)
    p = tl.fma(a, p, -1.1511051654815674)
    p = tl.fma(a, p, -1.0)
    return tl.fma(-a, tl.exp2(p), tl.maximum(x, 0.0))


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """`activations.apply` on float32; None gives x back."""
    if ACTIVATION == "gelu":
        x = _gelu(x)
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh u) / 2 is 1 / (1 + exp(-2u)): no cancellation where tanh is near -1. The numbers are
        # those of u = 0.7978845608 (x + 0.044715 x^3), times -2 / log(2).
        x = _over_one_plus_power(x, x * tl.fma(x * x, -0.1029432395800235, -2.302208198144325))
    elif ACTIVATION == "silu":
        x = _over_one_plus_power(x, x * -1.4426950408889634)
    return x


@triton.jit
def load_activated(ptr, offsets, mask, K, ACTIVATION: tl.constexpr):
    """A tile of act(x), taken in float32 and rounded to x's type; 0 outside `mask` (None: all).

    Rounded as an unfused model would, 16 bits enter the rotation by one product, float32 by two.
    offsets: of the K columns that the activation gives. A gated one reads K columns further too.
    """
    x = tl.load(ptr + offsets) if mask is None else tl.load(ptr + offsets, mask=mask, other=0.0)
    if ACTIVATION == "swiglu":
        up = tl.load(ptr + K + offsets) if mask is None else tl.load(ptr + K + offsets, mask=mask, other=0.0)
        x = (activate(x.to(tl.float32), "silu") * up.to(tl.float32)).to(x.dtype)
    elif ACTIVATION is not None:
        x = activate(x.to(tl.float32), ACTIVATION).to(x.dtype)
    return x


@triton.jit
def pieces(N: tl.constexpr, SPLIT: tl.constexpr):
    """The numbers of N pieces, along the axis that a tile has them in."""
    number = tl.arange(0, N)[:, None, None, None, None]
    return number[None, :, :, :, :, :] if SPLIT else number


@triton.jit
def piece_columns(SPLIT: tl.constexpr, APART: tl.constexpr = 8, WIDTH: tl.constexpr = 8):
    """Column numbers of a piece [1, 4, 2, 4, 8]; SPLIT: [2, 1, 4, 2, 4, 4], its columns 0 to 3, then 4 to 7.

    32-bit floats are read and written SPLIT, 16 bytes a thread at once. APART: from the first of 8
    neighbours to that of the next 8. WIDTH: of the last axis of what is not SPLIT.
    """
    wide = tl.arange(0, 4)[None, :, None, None, None] * (8 * APART)
    wide += tl.arange(0, 2)[None, None, :, None, None] * APART
    wide += tl.arange(0, 4)[None, None, None, :, None] * (2 * APART)
    if SPLIT:
        half = tl.arange(0, 2)[:, None, None, None, None, None] * 4
        cols = half + wide[None, :, :, :, :, :] + tl.arange(0, 4)[None, None, None, None, None, :]
    else:
        cols = wide + tl.arange(0, WIDTH)[None, None, None, None, :]
    return cols


@triton.jit
def split(x):
    """A tile [G, 4, 2, 4, 8] as [2, G, 4, 2, 4, 4]: nothing moves between threads."""
    return tl.permute(tl.reshape(x, (x.shape[0], 4, 2, 4, 2, 4)), 4, 0, 1, 2, 3, 5)


@triton.jit
def whole(x):
    """Undo `split`."""
    return tl.reshape(tl.permute(x, 1, 2, 3, 4, 0, 5), (x.shape[1], 4, 2, 4, 8))


@triton.jit
def _operand(x, FRAGMENT: tl.constexpr):
    """A tile [G, 4, 2, 4, 8] as the right operand [G, 16, 16] of a product along columns 1, 2, 16, 32 apart.

    Without FRAGMENT along columns 1, 2, 4, 8 apart, in their order.
    """
    if FRAGMENT:
        x = tl.permute(tl.reshape(x, (x.shape[0], 4, 2, 4, 2, 2, 2)), 0, 5, 3, 6, 4, 1, 2)
    else:
        x = tl.permute(x, 0, 2, 4, 1, 3)
    return tl.reshape(x, (x.shape[0], 16, 16))


@triton.jit
def _in_order(y, FRAGMENT: tl.constexpr):
    """Undo `_operand` on the transposed product."""
    if FRAGMENT:
        y = tl.permute(tl.reshape(y, (y.shape[0], 2, 4, 2, 2, 4, 2)), 0, 2, 3, 5, 1, 4, 6)
    else:
        y = tl.permute(tl.reshape(y, (y.shape[0], 4, 4, 2, 8)), 0, 1, 3, 2, 4)
    return tl.reshape(y, (y.shape[0], 4, 2, 4, 8))


@triton.jit
def _hadamard(G: tl.constexpr, BOTH: tl.constexpr, FRAGMENT: tl.constexpr, dtype: tl.constexpr):
    """[G, 16, 16], orthonormal: the regular Hadamard of order 4 on one digit of the index, or on BOTH.

    FRAGMENT: the digits are bits 0 and 3, and bits 1 and 2; else bits 0 and 1, and bits 2 and 3. With it a
    product of zeros is added, which has the compiler compute the matrix where accumulators are, and so where
    left operands are. Any other way it goes through shared memory, at two barriers a row.
    """
    FIRST: tl.constexpr = 9 if FRAGMENT else 3
    SECOND: tl.constexpr = 15 - FIRST
    differ = tl.arange(0, 16)[None, :, None] ^ tl.arange(0, 16)[None, None, :]
    # Of order 4, the entries where both bits differ are negative.
    h = tl.where((differ & FIRST) == FIRST, -1.0, 1.0)
    if BOTH:
        h = tl.where((differ & SECOND) == SECOND, -h, h) * 0.25
    else:
        h = tl.where((differ & SECOND) == 0, h, 0.0) * 0.5
    h = h.broadcast_to(G, 16, 16)
    if FRAGMENT:
        zeros = tl.zeros((G, 16, 16), tl.bfloat16)
        h = tl.dot(zeros, zeros, h)
    return h.to(dtype)


@triton.jit
def high_part(x):
    """x (float32) rounded to 8 significant bits: (as bfloat16, as float32).

    By integer arithmetic: a conversion instruction here compiles to an unpacked F2F, which
    runs at an eighth of the rate. NaN is left as it is: rounded up, the one that NVIDIA's
    instructions make (0x7FFFFFFF) would become -0.0.
    """
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + tl.where(x == x, 0x8000, 0)) & -65536
    return (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True), bits.to(tl.float32, bitcast=True)


@triton.jit
def _top(x):
    """The first 8 significant bits of x (float32): (as bfloat16, as float32). NaN may give an infinity."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True), (bits & -65536).to(
        tl.float32, bitcast=True
    )


@triton.jit
def _rest(x, MMA: tl.constexpr):
    """x, what `_top` left of a float32, as the nearest bfloat16.

    AMD's instructions before gfx950 do not convert, and the compiler's own way takes six of them with a
    look for NaN. That is not needed: a NaN that the sum would turn into a number has one in its top bits.
    """
    if MMA:
        y = x.to(tl.bfloat16)
    else:
        bits = x.to(tl.int32, bitcast=True) + 0x8000
        y = (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return y


@triton.jit
def _transform(x, BOTH: tl.constexpr, FRAGMENT: tl.constexpr, PARTS: tl.constexpr, MMA: tl.constexpr):
    """`_hadamard` @ x a piece in float32, with a float32 x taken as PARTS bfloat16 of 8 bits each.

    16-bit operands enter as they are. Two parts leave 2 ** -16 of an element, three are exact.
    """
    if x.dtype == tl.float32:
        h = _hadamard(x.shape[0], BOTH, FRAGMENT, tl.bfloat16)
        high, taken = _top(x)
        rest = x - taken
        if PARTS == 3:
            middle, taken = _top(rest)
            y = tl.dot(h, (rest - taken).to(tl.bfloat16))
            y = tl.dot(h, middle, y)
        else:
            y = tl.dot(h, _rest(rest, MMA))
        y = tl.dot(h, high, y)
    else:
        y = tl.dot(_hadamard(x.shape[0], BOTH, FRAGMENT, x.dtype), x)
    return y


@triton.jit
def rotate_tile(x, ROTATION: tl.constexpr, PARTS: tl.constexpr, MMA: tl.constexpr):
    """The regular Hadamard of each ROTATION columns of a tile [G, 4, 2, 4, 8], in float32.

    PARTS as in `_transform`. Of order 1024 it does the part that lies within pieces; `across` is the rest.
    Groups of 16 are one product, in which NaN of one group cannot reach another.
    """
    FRAGMENT: tl.constexpr = MMA and ROTATION >= 64
    if ROTATION == 0:
        y = x.to(tl.float32)
    else:
        y = _transform(_operand(x, FRAGMENT), ROTATION >= 16, FRAGMENT, PARTS, MMA)
        y = tl.permute(y, 0, 2, 1)
        if ROTATION >= 64:
            y = _transform(y, ROTATION >= 256, FRAGMENT, PARTS, MMA)
        y = _in_order(y, FRAGMENT)
    return y


@triton.jit
def across(a, b, c, d):
    """The regular Hadamard of order 4 across four tiles, orthonormal: four tiles."""
    half = (a + b + c + d) * 0.5
    return half - d, half - c, half - b, half - a
