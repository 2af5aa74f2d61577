"""What a stored layer loses of each row and scale, beside the least that its format and scales allow.

All in the stored space (rotated, smoothed), where rounding happens. w is the original there, v what the file
holds, near the value nearest to w that the format has with the file's scales; e = w - v is the error and
h = w - near the least one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ...kernels.scales import absmax_rows
from ...quant.grid import Grid
from ..quantize.check import in_range
from .weights import Part, Quantized

FINE = 1e-6
"""Share of the least error by which two sums over the same values may differ."""

SCALE_GAIN = 200.0
"""A scale is wrong that leaves this many times the least error of one weight to be gained by another. Honest
LDLQ and learned rounding, 415 layers over ten kinds of inputs and five of weights, leave up to 112."""

SCALE_BIAS = 1.5
"""Error that lies along the values this many times over is a scale's; feedback below a step does so once."""

_LOSS = 4.0
_ROW_LOSS = 20.0
_LEAST_LOSS = 1e-4
_FEW = 16


@dataclass
class Rows:
    """Sums over each row of a layer [N, K], float64 [N].

    signal: w w. error: e e. least: h h. top, reach: max |e|, max |h|. along: e v. power: v v. by_column: w w,
    w v and v v over each column, float64 [3, K]. The last five are left 0 in pieces where every value is the
    nearest. poor: what was found of scales, as (scale, text).
    """

    columns: int
    grid: Grid
    signal: torch.Tensor
    error: torch.Tensor
    least: torch.Tensor
    along: torch.Tensor
    power: torch.Tensor
    top: torch.Tensor
    reach: torch.Tensor
    by_column: torch.Tensor
    poor: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, quantized: Quantized) -> "Rows":
        """Make room for the rows of a layer."""
        n, k = quantized.shape
        signal, error, least, along, power, top, reach = torch.zeros(7, n, dtype=torch.float64)
        by_column = torch.zeros(3, k, dtype=torch.float64)
        return cls(k, quantized.grid, signal, error, least, along, power, top, reach, by_column)

    @property
    def nearest(self) -> torch.Tensor:
        """Tell the rows whose values are all the nearest, bool [N]."""
        return self.error <= self.least * (1 + FINE)

    def add(self, start: int, weight: torch.Tensor, part: Part) -> None:
        """Take in rows from `start` on: as they are in the original, float32 [n, K], and as stored."""
        work = part.stored(weight)
        v, large = part.values(), absmax_rows(work)
        finite = bool(torch.isfinite(large).all())  # what is not would point outside of tables of levels
        near = part.nearest(work if finite else work.nan_to_num()).nan_to_num_(0.0)
        unit = in_range(large)
        if unit != 1.0:  # or squares leave the range of float32
            work, v, near = work * unit, v * unit, near * unit
        error, least = work - v, near.sub_(work)
        sums = _Piece(self.grid, 1.0 / unit**2)
        ww, ee, hh = (sums.of(a, a) for a in (work, error, least))
        stop = start + work.shape[0]
        for total, values in ((self.signal, ww), (self.error, ee), (self.least, hh)):
            total[start:stop] = values.sum(1)
        if not bool(self.nearest[start:stop].all()):
            ev, vv = sums.of(error, v), sums.of(v, v)
            for total, (a, b) in zip(self.by_column, ((work, work), (work, v), (v, v)), strict=True):
                total += (a * b).sum(0).double() / unit**2
            self.along[start:stop], self.power[start:stop] = ev.sum(1), vv.sum(1)
            reach = torch.maximum(absmax_rows(least), 1e-3 * unit * large).double() / unit
            self.top[start:stop] = absmax_rows(error).squeeze(1).double() / unit
            self.reach[start:stop] = reach.squeeze(1)
            e, c, p, h = map(sums.by_scale, (ee, ev, vv, hh))
            self._misfits(start, e, c, p, h, sums.by_scale(reach, torch.amax))
        signal, least_sums = sums.by_scale(ww), sums.by_scale(hh)
        if finite:
            self._losses(start, signal, least_sums, sums, weight, work, part, unit)

    def _misfits(
        self,
        start: int,
        ee: torch.Tensor,
        ev: torch.Tensor,
        vv: torch.Tensor,
        hh: torch.Tensor,
        reach: torch.Tensor,
    ) -> None:
        """Find scales for which another would do far better; one in all is looked at in the end."""
        if not self.grid.rows:
            return
        count = self.grid.rows * (self.grid.columns or self.columns)
        for row, column in misfits(ee, ev, vv, torch.maximum(hh / count, reach.square() / 3)):
            factor = float(1 / (1 + ev[row, column] / vv[row, column]))
            self.poor.append((self._named(start, row, column), f"{factor:.3g} times what fits"))

    def _losses(
        self,
        start: int,
        ww: torch.Tensor,
        hh: torch.Tensor,
        sums: "_Piece",
        weight: torch.Tensor,
        work: torch.Tensor,
        part: Part,
        unit: float,
    ) -> None:
        """Find scales with which no codes could keep what the format keeps with a scale of its own."""
        if not self.grid.rows:
            return
        share = hh / ww.clamp_min(1e-300)
        limit = _LEAST_LOSS if share.numel() < _FEW else max(_LEAST_LOSS, _LOSS * float(share.median()))
        doubtful = ~(share <= limit) & (ww > 0)
        if not bool(doubtful.any()):
            return
        own = (part.anew(weight) * unit).sub_(work)
        oo = sums.by_scale(sums.of(own, own))
        lossy = doubtful & ~(hh <= _LOSS * oo + 1e-5 * ww)
        if hh.shape[1] > 1 and self.grid.rows == 1:
            # LDLQ chooses a group's scale for weights with the feedback in them, which in a group of small
            # ones is much and beside the row's other groups is nothing.
            lossy &= hh > _ROW_LOSS * oo.mean(1, keepdim=True)
        for row, column in lossy.nonzero().tolist():
            kept = float(10 * torch.log10(ww[row, column] / hh[row, column]))
            self.poor.append((self._named(start, row, column), f"with it no more than {kept:.1f} dB is kept"))

    def _named(self, start: int, row: int, column: int) -> str:
        first = start + row * self.grid.rows
        if self.grid.rows == 1 and not self.grid.columns:
            return f"row {first}"
        place = f"row {first}" if self.grid.rows == 1 else f"rows from {first}"
        return f"{place}, columns from {column * self.grid.columns}" if self.grid.columns else place


def misfits(ee: torch.Tensor, ev: torch.Tensor, vv: torch.Tensor, noise: torch.Tensor) -> list[list[int]]:
    """Return the indices of scales that another would replace with far less error.

    ee, ev, vv: sums over what shares a scale. noise: the least squared error of one weight there.
    """
    gain = ev.square() / vv.clamp_min(1e-300)
    wrong = (gain > SCALE_GAIN * noise) & (ev.abs() > SCALE_BIAS * ee) & (vv > 0)
    return wrong.nonzero().tolist()


@dataclass(frozen=True)
class _Piece:
    """Sums over what shares a scale, in rows [n, K] of one piece. square: brings squares to their size."""

    grid: Grid
    square: float

    def of(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return a b summed over the columns that share a scale, float64 [n, S]."""
        n, k = a.shape
        columns = self.grid.columns or k
        if k % columns:
            a, b = (torch.nn.functional.pad(x, (0, -k % columns)) for x in (a, b))
        return torch.linalg.vecdot(a.view(n, -1, columns), b.view(n, -1, columns)).double() * self.square

    def by_scale(self, sums: torch.Tensor, join: Callable[..., torch.Tensor] = torch.sum) -> torch.Tensor:
        """Add up the rows that share a scale: [n, S] to [ceil(n / rows), S]."""
        rows = self.grid.rows or sums.shape[0]
        if rows == 1:
            return sums
        padded = torch.nn.functional.pad(sums, (0, 0, 0, -sums.shape[0] % rows))
        return join(padded.view(-1, rows, sums.shape[1]), 1)
