"""NVFP4 of floats: e2m1 with an e4m3 scale per block of 16 columns, which is searched, and one in all."""

from collections.abc import Callable

import torch

from . import _checks, mxfp8
from ._library import define
from .blocks import in_lanes, in_rows, round_floats_, side_by_side
from .e4m3 import LARGEST, e4m3_bits, e4m3_values
from .rotation import float_chunks
from .scales import TINY, absmax_rows
from .tiled_scales import tiled, tiled_shape

BLOCK, TOP = 16, 6.0

MOVES = (0, 1, -1, 4, 5)
"""e4m3 steps tried from the scale whose 6 is the peak; 4 and 5 steps on, it is about 4 that is the peak."""


def scale_in_all(peak: torch.Tensor) -> torch.Tensor:
    """Return the scale that lets the largest block scale be 448, float32; peak: of the whole weight, []."""
    return (peak / peak.new_full((), 448.0 * TOP)).clamp_min(TINY)


def reaching(peaks: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Return the e4m3 bits, float32, of the block scales whose 6 is the peak; whole: the scale in all."""
    return e4m3_bits(peaks / (whole * TOP))


def choose_blocks(
    size: torch.Tensor, whole: torch.Tensor, total: Callable[[torch.Tensor], torch.Tensor] = in_lanes
) -> torch.Tensor:
    """Return the e4m3 bits, float32 [B], of the scales with which blocks of magnitudes [16, B] lose least.

    whole: the scale in all, [] or [B]. total: as in `mxfp8.choose_powers`.
    """
    start = reaching(size.amax(0), whole)
    scaled, spare = torch.empty_like(size), torch.empty_like(size)
    best, found = None, start
    for move in MOVES:
        tried = (start + move).clamp_(1, LARGEST)
        product = e4m3_values(tried) * whole
        torch.mul(size, product.reciprocal(), out=scaled)
        lost = total(round_e2m1_(scaled, spare).mul_(product).sub_(size).square_())
        if best is None:
            best = lost
        else:
            better = lost < best
            best, found = torch.where(better, lost, best), torch.where(better, tried, found)
    return found


def round_e2m1_(size: torch.Tensor, spare: torch.Tensor | None = None) -> torch.Tensor:
    """Round size >= 0 (float32) to e2m1's magnitudes, half to even, saturated, in place; return it."""
    return round_floats_(size.clamp_(max=TOP), 1, 1.0, torch.empty_like(size) if spare is None else spare)


def e2m1_codes(size: torch.Tensor) -> torch.Tensor:
    """Return the numbers 0 to 7, uint8, of e2m1's magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6; `size` is spent."""
    halves = size.mul_(2).to(torch.uint8)
    return torch.minimum(torch.minimum(halves, (halves >> 1).add_(2)), (halves >> 2).add_(4))


def check(x: _checks.Described, scale: _checks.Described | None) -> tuple[int, int]:
    """Return the shape of x; TypeError or ValueError for what `quantize_nvfp4` does not take."""
    if scale is not None and scale.numel() != 1:
        raise ValueError(f"scale must have one element, not shape {tuple(scale.shape)}")
    return mxfp8.check(x, BLOCK)


def _quantize_nvfp4(x, scale=None):
    n, k = check(x, scale)
    if scale is not None:
        whole = scale.to(device=x.device, dtype=torch.float32, copy=True).reshape(())
    elif n * k:
        whole = scale_in_all(torch.stack([absmax_rows(work).amax() for _, work in float_chunks(x)]).amax())
    else:
        whole = scale_in_all(x.new_zeros((), dtype=torch.float32))
    q = torch.empty(n, k // 2, dtype=torch.uint8, device=x.device)
    stored = torch.empty(n, k // BLOCK, dtype=torch.uint8, device=x.device)
    for part, work in float_chunks(x) if k else ():
        blocks = side_by_side(work, BLOCK)
        size = blocks.abs()
        finite = torch.isfinite(size.amax(0))
        found = choose_blocks(size, whole)
        codes = e2m1_codes(round_e2m1_(size.mul_((e4m3_values(found) * whole).reciprocal())))
        codes |= ((blocks < 0) & (codes != 0)).to(torch.uint8) << 3
        q[part] = in_rows((codes[::2] << 4) | codes[1::2], k // 2)
        stored[part] = found.masked_fill_(~finite, LARGEST + 1).view(-1, k // BLOCK)
    return q, tiled(stored), whole


def _fake(x, scale=None):
    n, k = check(x, scale)
    q = torch.empty((n, k // 2), dtype=torch.uint8, device=x.device)
    blocks = torch.empty(tiled_shape(n, k // BLOCK), dtype=torch.uint8, device=x.device)
    return q, blocks, torch.empty((), dtype=torch.float32, device=x.device)


_op = define(
    "quantize_nvfp4(Tensor x, Tensor? scale=None) -> (Tensor, Tensor, Tensor)",
    eager=_quantize_nvfp4,
    fake=_fake,
    device="nvfp4.quantize_nvfp4",
)


def quantize_nvfp4(
    x: torch.Tensor, scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round x [N, K] to NVFP4; return (bytes, scales of blocks, scale in all).

    Bytes: uint8 [N, K / 2], the even column in the high half; zeros are positive. Scales of blocks:
    float8_e4m3fn in cuBLAS' tiles, the best of five for each block of 16 columns (`choose_blocks`). Scale in
    all: float32 [], absmax / 2688, or `scale` (one element), which saturates. NaN or Inf in a block makes its
    scale NaN, and shows in a scale in all that comes from it. TypeError for a non-float x, ValueError unless
    x is 2-D and K a multiple of 16.
    """
    q, blocks, whole = _op(x, scale)
    return q, blocks.view(torch.float8_e4m3fn), whole
