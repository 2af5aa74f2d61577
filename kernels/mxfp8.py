"""MXFP8 of floats: e4m3 with a power of two per block of 32 columns, which is searched.

Source: OCP Microscaling Formats 1.0 (the element and scale formats; it leaves the choice of the scale open).
"""

from collections.abc import Callable

import torch

from . import _checks
from ._library import define
from .blocks import in_lanes, in_rows, round_floats_, side_by_side
from .rotation import float_chunks
from .tiled_scales import tiled, tiled_shape

BLOCK, TOP = 32, 448.0
LEAST = 2.0**-126
"""The smallest power of two that float32 holds without losing bits."""


def next_power(scale: torch.Tensor) -> torch.Tensor:
    """Return the powers of two from `scale` (float32) up, LEAST at least; NaN and Inf pass through."""
    bits = scale.clamp_min(LEAST).view(torch.int32)
    powers = (bits + 0x7FFFFF).bitwise_and_(0x7F800000).view(torch.float32)
    return torch.where(torch.isfinite(scale), powers, scale)


def choose_powers(
    size: torch.Tensor, total: Callable[[torch.Tensor], torch.Tensor] = in_lanes
) -> torch.Tensor:
    """Return the powers of two with which blocks of magnitudes [32, B] lose least, float32 [B].

    Tried are the power that reaches the peak, and half of it: the peak is then clipped, and all others lie
    twice as dense. total: makes [B] of the squared errors [32, B], which it may overwrite. NaN and Inf in a
    block show in its scale.
    """
    peaks = size.amax(0)
    whole = next_power(peaks / peaks.new_full((), TOP))
    half = (whole / 2).clamp_min(LEAST)
    scaled, spare, lost = torch.empty_like(size), torch.empty_like(size), []
    for scale in (whole, half):
        torch.mul(size, scale.reciprocal(), out=scaled)
        value = round_floats_(scaled.clamp_(max=TOP), 3, 2.0**-6, spare)
        lost.append(total(value.mul_(scale).sub_(size).square_()))
    return torch.where(lost[1] < lost[0], half, whole)


def check(x: _checks.Described, block: int = BLOCK) -> tuple[int, int]:
    """Return the shape of a weight [N, K] in whole blocks; TypeError or ValueError for others."""
    _checks.floating("x", x)
    _checks.matrix("x", x)
    n, k = x.shape
    if k % block:
        raise ValueError(f"rows of {k} columns are no whole blocks of {block}")
    return n, k


def _quantize_mxfp8(x):
    n, k = check(x)
    q = torch.empty(n, k, dtype=torch.uint8, device=x.device)
    exponents = torch.empty(n, k // BLOCK, dtype=torch.uint8, device=x.device)
    for part, work in float_chunks(x) if k else ():
        blocks = side_by_side(work, BLOCK)
        scale = choose_powers(blocks.abs())
        bits = blocks.mul_(scale.reciprocal()).clamp_(-TOP, TOP).to(torch.float8_e4m3fn).view(torch.uint8)
        q[part] = in_rows(bits.masked_fill_(bits == 0x80, 0), k)
        stored = (scale.view(torch.int32) >> 23).masked_fill_(~torch.isfinite(scale), 255)
        exponents[part] = stored.view(-1, k // BLOCK)
    return q, tiled(exponents)


def _fake(x):
    n, k = check(x)
    q = torch.empty((n, k), dtype=torch.uint8, device=x.device)
    return q, torch.empty(tiled_shape(n, k // BLOCK), dtype=torch.uint8, device=x.device)


_op = define(
    "quantize_mxfp8(Tensor x) -> (Tensor, Tensor)",
    eager=_quantize_mxfp8,
    fake=_fake,
    device="mxfp8.quantize_mxfp8",
)


def quantize_mxfp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round x [N, K] to MXFP8; return ``(float8_e4m3fn [N, K], scales float8_e8m0fnu in cuBLAS' tiles)``.

    Each block of 32 columns takes the better of two powers of two (`choose_powers`). Half to even, saturated;
    zeros are positive. NaN or Inf in a block makes its scale NaN. TypeError for a non-float x, ValueError
    unless x is 2-D and K a multiple of 32.
    """
    q, scale = _op(x)
    return q.view(torch.float8_e4m3fn), scale.view(torch.float8_e8m0fnu)
