"""The regular Hadamard rotation as an op of its own, and as bfloat16 planes for the W8A16 product."""

import torch
import triton
import triton.language as tl

from .. import _checks
from ..rotation import check_rotation
from ._arch import arch_of
from ._launch import Launch, cdiv, power_of_2
from ._operands import Operand, empty, rows_of
from ._plan import Plan
from ._planned import planned
from ._tiles import high_part, rotate_tile, tile_columns

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
    ROWS: tl.constexpr,
    G: tl.constexpr,
    OUTER: tl.constexpr,
):
    """PLANES = 0 writes out_ptr's dtype; P > 0 writes P bfloat16 planes whose sum is the rotated row."""
    piece = tl.arange(0, ROWS * G)[:, None, None]
    row = (tl.program_id(0).to(tl.int64) * ROWS) + piece // G
    cols = tl.program_id(1) * (G * OUTER * 16) + (piece % G) * (OUTER * 16) + tile_columns(1, OUTER)
    mask = (row < M) & (cols < K)
    x = tl.load(x_ptr + row * stride_xm + cols, mask=mask, other=0.0)
    y = rotate_tile(x, ROTATION, PARTS)
    out = out_ptr + row * K + cols
    if PLANES == 0:
        tl.store(out, y.to(out_ptr.dtype.element_ty), mask=mask)
    for _ in tl.static_range(PLANES):
        high, taken = high_part(y)
        tl.store(out, high, mask=mask)
        out += stride_plane  # a step at a time: p times the stride may not fit its int32
        y -= taken


def launch_rotate(rows: Operand, out: Operand, rotation: int, planes: int = 0) -> Launch:
    """Return the launch for rows [M, K] into contiguous out [M, K], or [planes, M, K] bfloat16."""
    m, k = rows.shape
    outer = 64 if rotation == 1024 else 16
    pieces = PIECES * 16 // outer
    g = min(pieces, power_of_2(cdiv(k, outer * 16)))
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
        "ROWS": pieces // g,
        "G": g,
        "OUTER": outer,
    }
    grid = (cdiv(m, pieces // g), cdiv(k, g * outer * 16))
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
