"""W4A8 and W6A8 of floats: codes that a searched scale per group decodes to int8, and a scale per row.

A code stands for round(level x s_rel) x s_channel, with s_rel in e4m3. The integer between -127 and 127 is
what a GPU multiplies, so its rounding belongs to the search. A weight over its row scale lies nearest to a
level that its place among the half integers tells, for levels are integers: one table of 127 scales x 512
half steps holds the nearest integer of each, exactly.
"""

from collections.abc import Callable
from functools import lru_cache

import torch

from . import _checks
from ._library import define
from .blocks import in_lanes, in_rows, side_by_side
from .e4m3 import LARGEST, e4m3_bits, e4m3_values
from .packing import _pack, row_bytes
from .rotation import check_rotation, float_chunks

CODEBOOK = (
    -0.980602, -0.794529, -0.638165, -0.500986, -0.377321, -0.263187, -0.155210, -0.050720,
    0.052541, 0.156985, 0.265284, 0.379533, 0.502636, 0.638953, 0.794876, 0.980671,
)  # fmt: skip
"""The default levels at 4 bits, as every tool writes them: Lloyd and Max's for a Gaussian over its group's
peak."""

TOP = {4: CODEBOOK[-1], 6: 31.0}
"""The largest level."""

PEAK = {4: 128.0, 6: 4.0}
"""s_rel of a row's largest group: its levels then reach 126 and 124, and are exact integers at 6 bits."""

MOVES = {4: (0, 1, -1), 6: (1, 0, 2)}
"""How many e4m3 steps from the scale that reaches the group's peak the best one is sought."""

STEPS = 512
"""Half steps from -128 to 128, for each of which the tables have an entry."""

TINY = 1e-30


def row_scale(peaks: torch.Tensor, bits: int) -> torch.Tensor:
    """Return s_channel [n, 1] of rows whose groups have the peaks [n, groups]; NaN and Inf pass through."""
    peak = peaks.amax(1, keepdim=True)
    return (peak / peak.new_full((), TOP[bits] * PEAK[bits])).clamp_min(TINY)


def reaching(peaks: torch.Tensor, row: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the e4m3 bits, float32, of the group scales with which levels reach the peaks."""
    return e4m3_bits(peaks / (row * TOP[bits]))


def choose_groups(
    blocks: torch.Tensor,
    row: torch.Tensor,
    peaks: torch.Tensor,
    bits: int,
    moves: tuple[int, ...],
    total: Callable[[torch.Tensor], torch.Tensor] = in_lanes,
) -> torch.Tensor:
    """Return the e4m3 bits, float32 [B], of the scales with which groups [columns, B] lose least.

    row: s_channel, finite, [B]. peaks: of the groups, [B]. moves: as MOVES. total: makes [B] of the squared
    errors [columns, B], which it may overwrite.
    """
    start = reaching(peaks, row, bits)
    target = blocks * row.reciprocal()
    steps = half_steps(target)
    table = nearest_integers(bits, blocks.device)
    best, found = None, start
    for move in moves:
        tried = (start + move).clamp_(1, LARGEST)
        index = steps + (tried * STEPS).to(torch.int32)
        error = table.index_select(0, index.flatten()).view(blocks.shape).sub_(target).square_()
        lost = total(error)
        if best is None:
            best, found = lost, tried
        else:
            better = lost < best
            best, found = torch.where(better, lost, best), torch.where(better, tried, found)
    return found


def half_steps(target: torch.Tensor) -> torch.Tensor:
    """Return the half step that holds each weight over its row scale, 0 to 511, int32."""
    return target.mul(2.0).floor_().clamp_(-256, 255).add_(256).to(torch.int32)


@lru_cache(maxsize=8)
def _tables(bits: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (levels, nearest integer, nearest code) for `bits` on a device; do not write to them."""
    with torch.inference_mode(False):
        made_of = torch.tensor(CODEBOOK) if bits == 4 else torch.arange(-31.0, 32.0)
        decoded = made_of * e4m3_values(torch.arange(LARGEST + 1, device="cpu")).unsqueeze(1)
        decoded = decoded.round_().clamp_(-127, 127)
        middles = (torch.arange(-STEPS // 2, STEPS // 2) + 0.5) / 2
        codes = (decoded.unsqueeze(1) - middles.view(1, -1, 1)).abs().argmin(-1)
        integers = decoded.gather(1, codes)
        made = (made_of, integers.flatten(), (codes + lowest(bits)).flatten().to(torch.int8))
        return tuple(t.to(device) for t in made)  # type: ignore[return-value]


def lowest(bits: int) -> int:
    """Return the smallest code: they run from -8 to 7, or from -31 to 31."""
    return -8 if bits == 4 else -31


def levels(bits: int, device: torch.device) -> torch.Tensor:
    """Return the level of each code, from the lowest on, float32."""
    return _tables(bits, str(device))[0]


def nearest_integers(bits: int, device: torch.device) -> torch.Tensor:
    """Return the integer nearest to each half step under each scale, float32 [127 * 512]."""
    return _tables(bits, str(device))[1]


def nearest_codes(bits: int, device: torch.device) -> torch.Tensor:
    """Return the (lowest) code of that integer, int8 [127 * 512]."""
    return _tables(bits, str(device))[2]


def check(x: _checks.Described, bits: int, group: int, rotation: int) -> tuple[int, int]:
    """Return the shape of x; TypeError or ValueError for what `quantize_decoded` does not take."""
    _checks.floating("x", x)
    _checks.matrix("x", x)
    _checks.has_rows("x", x)
    n, k = x.shape
    if bits not in TOP:
        raise ValueError(f"codes have 4 or 6 bits, not {bits}")
    if group < 1 or k % group or k % (bits - 2):
        raise ValueError(f"rows of {k} columns are no whole groups of {group}, packed at {bits} bits")
    check_rotation(k, rotation)
    return n, k


def _quantize_decoded(x, bits, group=16, rotation=0):
    n, k = check(x, bits, group, rotation)
    q = torch.empty(n, row_bytes(k, bits), dtype=torch.int8, device=x.device)
    s_rel = torch.empty(n, k // group, dtype=torch.uint8, device=x.device)
    s_channel = torch.empty(n, 1, dtype=torch.float32, device=x.device)
    for part, work in float_chunks(x, rotation):
        blocks = side_by_side(work, group)
        peaks = torch.maximum(blocks.amax(0), blocks.amin(0).neg_()).view(-1, k // group)
        row = row_scale(peaks, bits)
        s_channel[part] = row
        lost = ~torch.isfinite(row)
        if bool(lost.any()):  # they would point outside the tables
            blocks.view(group, *peaks.shape).masked_fill_(lost, 0.0)
            peaks.masked_fill_(lost, 0.0)
            row = row.masked_fill(lost, 1.0)
        rows = row.expand_as(peaks).reshape(-1)
        found = choose_groups(blocks, rows, peaks.view(-1), bits, MOVES[bits])
        s_rel[part] = found.view(peaks.shape)
        index = half_steps(blocks.mul_(rows.reciprocal())).add_((found * STEPS).to(torch.int32))
        codes = nearest_codes(bits, x.device).index_select(0, index.flatten()).view(blocks.shape)
        q[part] = _pack(in_rows(codes, k), bits, 1 << (bits - 1))
    return q, s_rel, s_channel


def _fake(x, bits, group=16, rotation=0):
    n, k = check(x, bits, group, rotation)
    return (
        torch.empty((n, row_bytes(k, bits)), dtype=torch.int8, device=x.device),
        torch.empty((n, k // group), dtype=torch.uint8, device=x.device),
        torch.empty((n, 1), dtype=torch.float32, device=x.device),
    )


_op = define(
    "quantize_decoded(Tensor x, int bits, int group=16, int rotation=0) -> (Tensor, Tensor, Tensor)",
    eager=_quantize_decoded,
    fake=_fake,
    device="decoded.quantize_decoded",
)


def quantize_decoded(
    x: torch.Tensor, bits: int, group: int = 16, rotation: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round x [N, K] to W4A8 (bits 4) or W6A8 (bits 6); return (packed codes, s_rel, s_channel).

    Packed codes: int8 [N, K bits / 8], of the default codebook at 4 bits; `decode` makes integers of them.
    s_rel: float8_e4m3fn [N, K / group], the best of three for each group (`choose_groups`). s_channel:
    float32 [N, 1]; w = integer x s_channel, in the space rotated by groups of `rotation` (0: none). NaN or
    Inf in a row shows in its s_channel, and its codes mean nothing. TypeError for a non-float x; ValueError
    for other bits, unless x is 2-D and groups and bytes are whole, and for a rotation that does not divide K.
    """
    q, s_rel, s_channel = _op(x, bits, group, rotation)
    return q, s_rel.view(torch.float8_e4m3fn), s_channel
