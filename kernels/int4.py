"""int4 rows of floats: codes -7 to 7 times a scale per row that is searched, for it clips the largest."""

import torch

from . import _checks
from ._library import define
from .packing import _pack
from .rotation import check_rotation, float_chunks
from .scales import absmax_rows, scale_from_absmax

LEVELS = 7

COARSE = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
FINE = (0.05, 0.025, 0.0125)
"""Shares of the scale from the peak: first the coarse ones, then steps to either side of the best."""


def clipped_scale(work: torch.Tensor, levels: int, cost: torch.Tensor | None = None) -> torch.Tensor:
    """Return the scales [n, 1] of least summed squared error of rows [n, K], float32.

    levels: the largest code. cost: what a squared error costs in each column, [K]; None for the same in all.
    NaN and Inf in a row show in its scale.
    """
    start = scale_from_absmax(absmax_rows(work), levels)
    spare = torch.empty_like(work)

    def lost(scale: torch.Tensor) -> torch.Tensor:
        codes = torch.mul(work, scale.reciprocal(), out=spare).round_().clamp_(-levels, levels)
        error = codes.mul_(scale).sub_(work).square_()
        return error.sum(1, keepdim=True) if cost is None else error @ cost.unsqueeze(1)

    share, best = torch.ones_like(start), lost(start)

    def try_(wanted: torch.Tensor) -> None:
        nonlocal share, best
        found = lost(start * wanted)
        less = found < best
        share, best = torch.where(less, wanted, share), torch.where(less, found, best)

    for wanted in COARSE:
        try_(torch.full_like(start, wanted))
    for step in FINE:
        centre = share
        for side in (step, -step):
            try_(centre + side)
    return start * share


def check(x: _checks.Described, rotation: int) -> tuple[int, int]:
    """Return the shape of x; TypeError or ValueError for what `quantize_int4` does not take."""
    _checks.floating("x", x)
    _checks.matrix("x", x)
    _checks.has_rows("x", x)
    n, k = x.shape
    if k % 2:
        raise ValueError(f"rows of {k} codes of 4 bits are no whole bytes")
    check_rotation(k, rotation)
    return n, k


def _quantize_int4(x, rotation=0):
    n, k = check(x, rotation)
    q = torch.empty(n, k // 2, dtype=torch.int8, device=x.device)
    scales = torch.empty(n, 1, dtype=torch.float32, device=x.device)
    for part, work in float_chunks(x, rotation):
        scales[part] = clipped_scale(work, LEVELS)
        codes = work.mul_(scales[part].reciprocal()).round_().clamp_(-LEVELS, LEVELS)
        q[part] = _pack(codes.to(torch.int8), 4)
    return q, scales


def _fake(x, rotation=0):
    n, k = check(x, rotation)
    q = torch.empty((n, k // 2), dtype=torch.int8, device=x.device)
    return q, torch.empty((n, 1), dtype=torch.float32, device=x.device)


_op = define(
    "quantize_int4(Tensor x, int rotation=0) -> (Tensor, Tensor)",
    eager=_quantize_int4,
    fake=_fake,
    device="int4.quantize_int4",
)


def quantize_int4(x: torch.Tensor, rotation: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Round x [N, K] to codes -7 to 7 with a searched scale per row; return ``(int8 [N, K / 2], [N, 1])``.

    rotation: 0, or a group size (GROUPS) whose regular Hadamard is applied to each row first. Codes are
    packed in two's complement, the even column in the low half; w = code x scale. The scale, float32, is that
    of least squared error among 13 of 0.3125 to 1.0875 times absmax / 7 (`clipped_scale`). NaN or Inf in a
    row shows as a non-finite scale, and its codes mean nothing. TypeError for a non-float x; ValueError
    unless x is 2-D and K is even, and for a rotation that does not divide K.
    """
    return _op(x, rotation)
