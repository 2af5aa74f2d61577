"""A row per program, rotated and kept in registers: what the quantizers to packed codes share."""

import triton
import triton.language as tl

from .._library import Unsupported
from ._arch import Arch, check_group
from ._operands import Operand
from ._tiles import load_activated, rotate_tile, tile_columns
from .rowwise import tile_for


@triton.jit
def rounded(x):
    """x (float32, below 2^22) rounded half to even."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def row_tiles(
    x_ptr,
    K,
    ROTATION: tl.constexpr,
    PARTS: tl.constexpr,
    G: tl.constexpr,
    OUTER: tl.constexpr,
    CHUNKS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """The tiles [G, OUTER, 16] of one row, float32 and rotated, zeros beyond K."""
    cols = tile_columns(G, OUTER)
    tiles = ()
    for c in tl.static_range(CHUNKS):
        at = c * (G * OUTER * 16) + cols
        x = load_activated(x_ptr, at, None if EVEN else at < K, K, None)
        tiles = tiles + (rotate_tile(x, ROTATION, PARTS),)  # type: ignore[assignment]  # noqa: RUF005
    return tiles


@triton.jit
def total(x):
    """The sum of a tile."""
    return tl.sum(tl.reshape(x, (x.numel,)), 0)


@triton.jit
def piece_offsets(G: tl.constexpr, OUTER: tl.constexpr, WIDTH: tl.constexpr):
    """Where WIDTH bytes for each 16 columns of a tile lie, [G, OUTER, WIDTH]."""
    piece = tl.arange(0, G)[:, None, None] * OUTER + tl.arange(0, OUTER)[None, :, None]
    return piece * WIDTH + tl.arange(0, WIDTH)[None, None, :]


@triton.jit
def store_pairs(q_ptr, chunk, codes, K, G: tl.constexpr, OUTER: tl.constexpr, EVEN: tl.constexpr):
    """Write codes int32 [G, OUTER, 16], of which four bits count, two to a byte, the even column in the low
    half; q_ptr: of the row."""
    even, odd = tl.split(tl.reshape(codes & 15, (G, OUTER, 8, 2)))
    at = chunk * (G * OUTER * 8) + piece_offsets(G, OUTER, 8)
    pairs = (even | (odd << 4)).to(tl.int8)
    if EVEN:
        tl.store(q_ptr + at, pairs)
    else:
        tl.store(q_ptr + at, pairs, mask=at < K // 2)


def row_arguments(arch: Arch, rows: Operand, rotation: int, elements: int) -> tuple[int, dict]:
    """Return the warps and a kernel's arguments for `row_tiles`; Unsupported for a row beyond registers.

    elements: of a row that a thread should hold.
    """
    check_group(arch, rotation)
    k = rows.shape[1]
    warps, g, outer, chunks = tile_for(k, rotation, elements)
    if not chunks:
        raise Unsupported(f"a row of {k} columns does not fit the registers of a program")
    return warps, {
        "x_ptr": rows,
        "K": k,
        "stride_xm": rows.stride(0),
        "ROTATION": rotation,
        "PARTS": 3 if rows.element_size() == 4 else 2,
        "G": g,
        "OUTER": outer,
        "CHUNKS": chunks,
        "EVEN": k % (g * outer * 16) == 0,
    }
