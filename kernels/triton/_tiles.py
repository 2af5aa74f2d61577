"""Tile arithmetic shared by the kernels: scales, rounding, activations and the rotation.

A row is handled in tiles [G, OUTER, 16]: G pieces of OUTER * 16 neighbouring columns, because
the regular Hadamard of 256 is the Kronecker product of two of order 16 and so costs two
16-point products on tensor cores. Both are written as H @ (..)^T: the accumulator of the
first then is, register for register, the right operand of the second (18 instructions an
element at 48 elements a thread on sm_90, against 27 as x @ H, then H @ ..).
"""

import triton
import triton.language as tl

# Numbers stand in the functions: Triton compares every global of a kernel at each of its launches.


@triton.jit
def magnitude(x):
    """|x| (float32) as the int32 of its bits: orders like the float, and NaN is the largest."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


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
def activate(x, ACTIVATION: tl.constexpr):
    """`activations.apply` on float32; None gives x back."""
    if ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh u) / 2 is 1 / (1 + exp(-2u)): no cancellation where tanh is near -1.
        u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        x = x / (1.0 + tl.exp(-2.0 * u))
    elif ACTIVATION == "silu":
        x = x / (1.0 + tl.exp(-x))
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
def tile_columns(G: tl.constexpr, OUTER: tl.constexpr):
    """Column numbers of a tile [G, OUTER, 16]."""
    piece = tl.arange(0, G)[:, None, None] * (OUTER * 16)
    return piece + tl.arange(0, OUTER)[None, :, None] * 16 + tl.arange(0, 16)[None, None, :]


@triton.jit
def _sign4(i, j):
    """The regular Hadamard matrix of order 4: -1 on the antidiagonal."""
    return tl.where((i & 3) + (j & 3) == 3, -1.0, 1.0)


@triton.jit
def _hadamard(G: tl.constexpr, N: tl.constexpr, ORDER: tl.constexpr):
    """[G, N, N] copies of a block-diagonal matrix of orthonormal regular Hadamards of ORDER."""
    i = tl.arange(0, N)[None, :, None]
    j = tl.arange(0, N)[None, None, :]
    h = _sign4(i, j)
    norm: tl.constexpr = 0.5 if ORDER == 4 else (0.25 if ORDER == 16 else 0.125)
    if ORDER >= 16:
        h *= _sign4(i >> 2, j >> 2)
    if ORDER >= 64:
        h *= _sign4(i >> 4, j >> 4)
    if ORDER < N:
        h = tl.where((i // ORDER) == (j // ORDER), h, 0.0)
    return (h * norm).broadcast_to(G, N, N)


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
def _transform(h, x, TRANSPOSE: tl.constexpr, PARTS: tl.constexpr):
    """h @ x (or h @ x^T) a piece in float32, with a float32 x taken as PARTS bfloat16 of 8 bits each.

    16-bit operands enter as they are. Two parts leave 2 ** -17 of an element, three are exact.
    """
    if TRANSPOSE:
        x = tl.permute(x, 0, 2, 1)
    if x.dtype == tl.float32:
        h16 = h.to(tl.bfloat16)
        high, taken = high_part(x)
        rest = x - taken
        if PARTS == 3:
            middle, taken = high_part(rest)
            y = tl.dot(h16, (rest - taken).to(tl.bfloat16))
            y = tl.dot(h16, middle, y)
        else:
            y = tl.dot(h16, rest.to(tl.bfloat16))
        y = tl.dot(h16, high, y)
    else:
        y = tl.dot(h.to(x.dtype), x)
    return y


@triton.jit
def rotate_tile(x, ROTATION: tl.constexpr, PARTS: tl.constexpr):
    """The regular Hadamard of each ROTATION columns of a tile [G, OUTER, 16], in float32.

    OUTER is 16 for groups up to 256 and 64 for 1024. PARTS as in `_transform`.
    """
    if ROTATION == 0:
        y = x.to(tl.float32)
    else:
        G: tl.constexpr = x.shape[0]
        OUTER: tl.constexpr = x.shape[1]
        inner = _hadamard(G, 16, 4 if ROTATION == 4 else 16)
        y = tl.permute(_transform(inner, x, True, PARTS), 0, 2, 1)
        if ROTATION >= 64:
            outer = _hadamard(G, OUTER, ROTATION // 16)
            y = _transform(outer, y, False, PARTS)
    return y
