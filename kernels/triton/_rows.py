"""A row per program, rotated and kept in registers: what the quantizers to packed codes share."""

import triton
import triton.language as tl

from .._library import Unsupported
from ._arch import Arch, check_group, mma_fragments
from ._operands import Operand
from .rowwise import load_rotated, tile_for


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
    MMA: tl.constexpr,
    G: tl.constexpr,
    QUARTERS: tl.constexpr,
    CHUNKS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """The tiles [G, 16, 16] of one row, float32 and rotated, zeros beyond K; `piece_numbers` says of what."""
    tiles = ()
    for c in tl.static_range(CHUNKS // QUARTERS):
        step = load_rotated(x_ptr, c * G * QUARTERS * 256, K, ROTATION, None, PARTS, MMA, G, EVEN)
        for i in tl.static_range(QUARTERS):
            tile = tl.reshape(tl.permute(step[i], 0, 1, 3, 2, 4), (G, 16, 16))
            tiles = tiles + (tile,)  # type: ignore[assignment]  # noqa: RUF005
    return tiles


@triton.jit
def piece_numbers(chunk, G: tl.constexpr, QUARTERS: tl.constexpr):
    """Which 256 columns of the row each piece of a tile holds, [G, 1]."""
    return ((chunk // QUARTERS) * G + tl.arange(0, G)[:, None]) * QUARTERS + chunk % QUARTERS


@triton.jit
def total(x):
    """The sum of a tile."""
    return tl.sum(tl.reshape(x, (x.numel,)), 0)


@triton.jit
def piece_offsets(chunk, G: tl.constexpr, QUARTERS: tl.constexpr, WIDTH: tl.constexpr):
    """Where WIDTH bytes for each 16 columns of a tile lie, [G, 16, WIDTH]."""
    sixteenth = piece_numbers(chunk, G, QUARTERS) * 16 + tl.arange(0, 16)[None, :]
    return sixteenth[:, :, None] * WIDTH + tl.arange(0, WIDTH)[None, None, :]


@triton.jit
def store_pairs(q_ptr, chunk, codes, K, G: tl.constexpr, QUARTERS: tl.constexpr, EVEN: tl.constexpr):
    """Write codes int32 [G, 16, 16], of which four bits count, two to a byte, the even column in the low
    half; q_ptr: of the row."""
    even, odd = tl.split(tl.reshape(codes & 15, (G, 16, 8, 2)))
    at = piece_offsets(chunk, G, QUARTERS, 8)
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
    warps, chunks = tile_for(k, rotation, elements)
    if not chunks:
        raise Unsupported(f"a row of {k} columns does not fit the registers of a program")
    quarters = 4 if rotation == 1024 else 1
    return warps, {
        "x_ptr": rows,
        "K": k,
        "stride_xm": rows.stride(0),
        "ROTATION": rotation,
        "PARTS": 3 if rows.element_size() == 4 else 2,
        "MMA": mma_fragments(rows.device),
        "G": warps,
        "QUARTERS": quarters,
        "CHUNKS": chunks * quarters,
        "EVEN": k % (warps * quarters * 256) == 0,
    }
