"""The grid of ``asym_w4a8_int8``: levels that a group scale decodes to int8, which a row scale makes floats.

A code stands for round(level x s_rel) x s_channel, with s_rel in e4m3. The integer between -127 and 127 is
what a GPU multiplies, so its rounding belongs to the grid. A weight over its row scale lies nearest to a
level that its place among the half integers tells, for levels are integers: one table of 127 scales x 512
half steps holds the nearest integer of each, exactly.

A scale is one complex number a group: s_channel + i s_rel, so that both are cut and moved as one.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from .feedback import Nearest
from .group_grid import GroupGrid

CODEBOOK = (
    -0.980602, -0.794529, -0.638165, -0.500986, -0.377321, -0.263187, -0.155210, -0.050720,
    0.052541, 0.156985, 0.265284, 0.379533, 0.502636, 0.638953, 0.794876, 0.980671,
)  # fmt: skip
"""The default levels at 4 bits, as every tool writes them: Lloyd and Max's for a Gaussian over its group's
peak."""

_SCALES, _STEPS, _TINY = 127, 512, 1e-30

_PEAK = {4: 128.0, 6: 4.0}
"""s_rel of a row's largest group: its levels then reach 126 and 124, and are exact integers at 6 bits."""

_MOVES = {4: (0, 1, -1), 6: (1, 0, 2)}
"""How many e4m3 steps from the scale that reaches the group's peak the best one is sought."""

_LDLQ_MOVES = {4: (0, 1, -1), 6: (1, 0, 2, -1, 3)}
"""The same for LDLQ, which has the time."""


@dataclass(frozen=True)
class DecodedGrid(GroupGrid):
    """bits: 4, with the levels of CODEBOOK, or 6, with the integers -31 to 31; columns: those of a group."""

    levels: int = 7
    columns: int = 16
    bits: int = 4

    def __post_init__(self) -> None:
        """Count the levels: codes are -8 to 7, or -31 to 31."""
        object.__setattr__(self, "levels", 7 if self.bits == 4 else 31)

    @property
    def lowest(self) -> int:
        """Return the smallest code."""
        return -8 if self.bits == 4 else -31

    @property
    def top(self) -> float:
        """Return the largest level."""
        return CODEBOOK[-1] if self.bits == 4 else 31.0

    def fit(
        self, work: torch.Tensor, cost: torch.Tensor | None = None, peak: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the scales that lose least on rows [n, K], complex [n, K / columns]; NaN where there is one.

        LDLQ chooses the groups' anew, by their cost, and keeps the rows', so `cost` is not looked at here.
        """
        groups = work.view(work.shape[0], -1, self.columns)
        peaks = torch.maximum(groups.amax(-1), groups.amin(-1).neg_())
        row = peaks.amax(1, keepdim=True) / (self.top * _PEAK[self.bits])
        start = torch.complex(row.clamp_min(_TINY), torch.ones_like(row)).expand(peaks.shape)
        if not torch.isfinite(row).all():
            return start
        return self._choose(groups, None, start.real, peaks, _MOVES[self.bits])

    def scale_from(self, peaks: torch.Tensor) -> torch.Tensor:
        """Return scales that reach the peaks [n, K / columns], complex."""
        row = (peaks.amax(1, keepdim=True) / (self.top * _PEAK[self.bits])).clamp_min(_TINY)
        s_rel = e4m3_values(peaks)[self._reaching(peaks, row).long()]
        return torch.complex(row.expand_as(s_rel).contiguous(), s_rel)

    def choose(self, work: torch.Tensor, cost: torch.Tensor | None, scale: torch.Tensor) -> torch.Tensor:
        """Return the scales of groups with the row scales of `scale`; see `GroupGrid.choose`."""
        peaks = torch.maximum(work.amax(-1), work.amin(-1).neg_())
        return self._choose(work, cost, scale.real, peaks, _LDLQ_MOVES[self.bits])

    def _choose(
        self,
        work: torch.Tensor,
        cost: torch.Tensor | None,
        row: torch.Tensor,
        peaks: torch.Tensor,
        moves: tuple[int, ...],
    ) -> torch.Tensor:
        """Try each scale near the one that reaches the peak, through the table, and keep the best."""
        start = self._reaching(peaks, row)
        inverse = row.reciprocal().unsqueeze(-1)
        target = work * inverse
        steps = _half_steps(target)
        table = _nearest(self.bits, work.device)
        best, found = None, start
        for move in moves:
            tried = (start + move).clamp_(1, _SCALES - 1)
            index = steps.add((tried * _STEPS).unsqueeze(-1)).to(torch.int32)
            error = table.index_select(0, index.flatten()).view(work.shape).sub_(target).square_()
            lost = error.sum(-1) if cost is None else error @ cost
            if best is None:
                best, found = lost, tried
            else:
                better = lost < best
                best, found = torch.where(better, lost, best), torch.where(better, tried, found)
        return torch.complex(row.expand(found.shape).contiguous(), e4m3_values(row)[found.long()])

    def _reaching(self, peaks: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """Return the e4m3 bits, float32, of the group scales with which levels reach the peaks."""
        wanted = (peaks / (row * self.top)).clamp_(2.0**-9, 448.0)
        return wanted.to(torch.float8_e4m3fn).view(torch.uint8).float().clamp_(1, _SCALES - 1)

    def _index(self, work: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return where the tables hold `work`, int32; shapes fit each other."""
        steps = _half_steps(work * scale.real.reciprocal())
        return steps.add_(e4m3_bits(scale.imag) * _STEPS).to(torch.int32)

    def round(self, work: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the codes nearest to `work`; shapes fit each other."""
        index = self._index(work, scale)
        codes = _nearest_codes(self.bits, work.device).index_select(0, index.flatten())
        return codes.view(index.shape).float()

    def nearest(self, work: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the values nearest to `work`; shapes fit each other."""
        index = self._index(work, scale)
        table = _nearest(self.bits, work.device)
        return table.index_select(0, index.flatten()).view(index.shape).mul_(scale.real)

    def rounder(self, scale: torch.Tensor) -> Nearest:
        """Return `nearest` for columns, with all that rows share computed once."""
        row = scale.real.contiguous()
        inverse, base = row.reciprocal(), e4m3_bits(scale.imag) * _STEPS
        table = _nearest(self.bits, scale.device)

        def nearest(column: torch.Tensor) -> torch.Tensor:
            index = _half_steps(column * inverse).add_(base).to(torch.int32)
            return table.index_select(0, index).mul_(row)

        return nearest

    def values(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the floats that codes stand for; shapes fit each other."""
        table = _levels(self.bits, codes.device)
        index = (codes - self.lowest).to(torch.int32)
        level = table.index_select(0, index.flatten()).view(codes.shape)
        return (level * scale.imag).round_().clamp_(-127, 127).mul_(scale.real)


def _half_steps(target: torch.Tensor) -> torch.Tensor:
    """Return the half step that holds each weight over its row scale, 0 to 511, as float32."""
    return target.mul(2.0).floor_().clamp_(-256, 255).add_(256)


def e4m3_bits(s_rel: torch.Tensor) -> torch.Tensor:
    """Return the bits of e4m3 values given as floats, float32, 1 at least."""
    return s_rel.to(torch.float8_e4m3fn).view(torch.uint8).float().clamp_(1, _SCALES - 1)


def e4m3_values(like: torch.Tensor) -> torch.Tensor:
    """Return e4m3's values of bits 0 to 126, float32 [127]."""
    return _e4m3(str(like.device))


@lru_cache(maxsize=8)
def _e4m3(device: str) -> torch.Tensor:
    with torch.inference_mode(False):
        bits = torch.arange(_SCALES, dtype=torch.uint8, device="cpu")
        return bits.view(torch.float8_e4m3fn).float().to(device)


@lru_cache(maxsize=8)
def _tables(bits: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (levels, nearest integer, nearest code) for `bits` on a device; do not write to them."""
    with torch.inference_mode(False):
        levels = torch.tensor(CODEBOOK) if bits == 4 else torch.arange(-31.0, 32.0)
        decoded = (levels * _e4m3("cpu").unsqueeze(1)).round().clamp(-127, 127)
        middles = (torch.arange(-_STEPS // 2, _STEPS // 2) + 0.5) / 2
        codes = (decoded.unsqueeze(1) - middles.view(1, -1, 1)).abs().argmin(-1)
        integers = decoded.gather(1, codes)
        lowest = -8 if bits == 4 else -31
        made = (levels, integers.flatten(), (codes + lowest).flatten().float())
        return tuple(t.to(device) for t in made)  # type: ignore[return-value]


def _levels(bits: int, device: torch.device) -> torch.Tensor:
    return _tables(bits, str(device))[0]


def _nearest(bits: int, device: torch.device) -> torch.Tensor:
    return _tables(bits, str(device))[1]


def _nearest_codes(bits: int, device: torch.device) -> torch.Tensor:
    return _tables(bits, str(device))[2]
