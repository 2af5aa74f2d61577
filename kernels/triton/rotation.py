"""The regular Hadamard rotation as an op of its own, and as bfloat16 planes for the W8A16 product."""

import torch
import triton
import triton.language as tl

from .. import _checks
from ..rotation import check_rotation
from ._arch import arch_of, mma_fragments
from ._launch import Launch, cdiv, power_of_2
from ._operands import Operand, empty, rows_of
from ._plan import Plan
from ._planned import planned
from ._tiles import across, high_part, piece_columns, pieces, rotate_tile, split, whole

WARPS = 4
PIECES = 16
"""Pieces of 256 columns a program: 32 elements a thread. With rows shorter than that, several rows."""


@triton.jit
def _rotate_kernel(
    x_ptr,
    out_ptr,
    M,
    K,
    stride_xm,
    stride_plane,
    ROTATION: tl.constexpr,
    PARTS: tl.constexpr,
    PLANES: tl.constexpr,
    MMA: tl.constexpr,
    ROWS: tl.constexpr,
    G: tl.constexpr,
):
    """PLANES = 0 writes out_ptr's dtype; P > 0 writes P bfloat16 planes whose sum is the rotated row."""
    SPLIT: tl.constexpr = x_ptr.dtype.element_ty == tl.float32
    QUARTERS: tl.constexpr = 4 if ROTATION == 1024 else 1
    tiles = ()
    for i in tl.static_range(QUARTERS):
        row, cols = places(ROWS, G, i, QUARTERS, SPLIT)
        mask = (row < M) & (cols < K)
        x = tl.load(x_ptr + row * stride_xm + cols, mask=mask, other=0.0)
        tiles = tiles + (rotate_tile(whole(x) if SPLIT else x, ROTATION, PARTS, MMA),)  # type: ignore[assignment]  # noqa: RUF005 - the compiler has no unpacking
    if QUARTERS == 4:
        tiles = across(tiles[0], tiles[1], tiles[2], tiles[3])  # type: ignore[misc]
    for i in tl.static_range(QUARTERS):
        y = tiles[i]  # type: ignore[var-annotated]
        if PLANES == 0:
            store_rows(out_ptr, y, M, K, ROWS, G, i, QUARTERS)
        else:
            row, cols = places(ROWS, G, i, QUARTERS, False)
            out = out_ptr + row * K + cols
            mask = (row < M) & (cols < K)
            for _ in tl.static_range(PLANES):
                high, taken = high_part(y)
                tl.store(out, high, mask=mask)
                out += stride_plane  # a step at a time: p times the stride may not fit its int32
                y -= taken


@triton.jit
def places(
    ROWS: tl.constexpr, G: tl.constexpr, QUARTER: tl.constexpr, QUARTERS: tl.constexpr, SPLIT: tl.constexpr
):
    """(row, column) of each element of this program's tile QUARTER: ROWS rows of G pieces each."""
    piece = pieces(ROWS * G, SPLIT)
    row = (tl.program_id(0).to(tl.int64) * ROWS) + piece // G
    step = (tl.program_id(1) * G + piece % G) * QUARTERS + QUARTER
    return row, step * 256 + piece_columns(SPLIT)


@triton.jit
def store_rows(
    out_ptr, y, M, K, ROWS: tl.constexpr, G: tl.constexpr, QUARTER: tl.constexpr, QUARTERS: tl.constexpr
):
    """Store tile QUARTER, float32, into the rows of out_ptr [M, K] of any float type."""
    SPLIT: tl.constexpr = out_ptr.dtype.element_ty == tl.float32
    row, cols = places(ROWS, G, QUARTER, QUARTERS, SPLIT)
    y = split(y) if SPLIT else y.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * K + cols, y, mask=(row < M) & (cols < K))


def shared_out(m: int, k: int, rotation: int) -> tuple[tuple[int, int], dict]:
    """Return the grid for rows [m, k] and how many rows and pieces of each (ROWS, G) a program takes."""
    width = 1024 if rotation == 1024 else 256
    count = PIECES * 256 // width
    g = min(count, power_of_2(cdiv(k, width)))
    return (cdiv(m, count // g), cdiv(k, g * width)), {"ROWS": count // g, "G": g}


def launch_rotate(rows: Operand, out: Operand, rotation: int, planes: int = 0) -> Launch:
    """Return the launch for rows [M, K] into contiguous out [M, K], or [planes, M, K] bfloat16."""
    m, k = rows.shape
    grid, shares = shared_out(m, k, rotation)
    args = {
        "x_ptr": rows,
        "out_ptr": out,
        "M": m,
        "K": k,
        "stride_xm": rows.stride(0),
        "stride_plane": m * k,
        "ROTATION": rotation,
        "PARTS": 3 if rows.dtype == torch.float32 else 2,
        "PLANES": planes,
        "MMA": mma_fragments(rows.device),
        **shares,
    }
    return Launch(_rotate_kernel, grid, args, num_warps=WARPS, num_stages=1)


@planned
def rotate(x: Operand, group: int) -> Plan:
    """Plan `kernels.rotate`: one launch."""
    _checks.floating("x", x)
    _checks.has_rows("x", x)
    check_rotation(x.shape[-1], group)
    arch_of(x.device)
    out = empty(x.shape, x.dtype, x.device)
    return Plan([launch_rotate(rows_of(x), out, group)] if x.numel() else [], out)
