"""How well each stored layer keeps its original: weight SQNR over all rows, output SQNR on real inputs.

Layers are read in pieces of rows, so memory does not grow with a layer. What is measured is the layer as the
file describes it; where the description breaks the contract, as `stored.judge.examine` reads it.
"""

from dataclasses import dataclass, replace

import torch

from ...folding.factors import Folds
from ...formats.convrot import GROUPS
from ..quantize.check import decibels
from .rows import Rows
from .weights import Part, Quantized, Source

_ELEMENTS_WITH_INPUTS = 1 << 22
"""In a piece when outputs are computed: the inputs are quantized anew for each."""

_TRIAL_ROWS = 64
_REFIT_GAIN = 6.0
_FITS_DB = 15.0


@dataclass(frozen=True)
class Quality:
    """One layer's SQNR in dB.

    weight_db: of its weight. w8a8_db, w8a16_db: of its output with INT8 and with exact activations, None
    without inputs.
    """

    weight_db: float
    w8a8_db: float | None = None
    w8a16_db: float | None = None


def measure(
    source: Source,
    quantized: Quantized,
    inputs: torch.Tensor | None = None,
    folds: Folds | None = None,
) -> tuple[Quality, Rows]:
    """Measure a layer over all rows. inputs: [n, K] activations as the layer gets them, any float dtype.

    folds: of the file. What the mean that they take off the inputs gives counts as signal, and outputs are
    compared as they were before their rows were divided.
    """
    inputs = None if inputs is None else inputs.float()
    rows = Rows.of(quantized)
    sums, dense = torch.zeros(3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    smooth = False
    mean = factors = None
    if folds is not None and inputs is not None:
        layer = quantized.info.name.removesuffix(".weight")
        mean, factors = folds.mean_output(layer), folds.row_factors(layer, quantized.shape[0])
    for start, stop in quantized.pieces(None if inputs is None else _ELEMENTS_WITH_INPUTS):
        w, part = source.rows(start, stop), quantized.part(start, stop)
        rows.add(start, w, part)
        smooth = part.smooth is not None
        if smooth or inputs is not None:
            v = part.floats()
            if inputs is not None:
                own = (x if x is None else x[start:stop] for x in (mean, factors))
                sums += _output_sums(inputs, w, v, part, *own)
            dense += torch.stack([w.double().square().sum(), v.sub_(w).double().square().sum()])
    signal, noise = (dense if smooth else torch.stack([rows.signal.sum(), rows.error.sum()])).tolist()
    quality = Quality(decibels(signal, noise))
    if inputs is None:
        return quality, rows
    y, a8, a16 = sums.tolist()
    a8_db = decibels(y, a8) if quantized.layout.quantizes_activations else None
    return replace(quality, w8a8_db=a8_db, w8a16_db=decibels(y, a16)), rows


def _output_sums(
    x: torch.Tensor,
    w: torch.Tensor,
    v: torch.Tensor,
    part: Part,
    mean: torch.Tensor | None,
    factors: torch.Tensor | None,
) -> torch.Tensor:
    """Return [signal, noise with INT8 activations, noise with exact ones] of the outputs of some rows."""
    own = 1.0 if factors is None else factors
    y = x @ w.t()
    a8 = 0.0
    if part.layout.quantizes_activations:
        a8 = float(part.linear(x).sub_(y).mul_(own).double().square().sum())
    a16 = float((x @ v.t()).sub_(y).mul_(own).double().square().sum())
    signal = y.mul_(own).double() + (0.0 if mean is None else mean)
    return torch.tensor([float(signal.square().sum()), a8, a16], dtype=torch.float64)


def diagnose(source: Source, quantized: Quantized) -> str:
    """Say what would make a noisy INT8 layer fit its original: another rotation, or other row scales.

    Returns "" if neither does. Tries the first rows.
    """
    form = quantized.form
    if not form.rotates:
        return ""
    n, k = quantized.shape
    stop = min(n, _TRIAL_ROWS)
    w = source.rows(0, stop)
    trials = {}
    for group in (0, *(g for g in GROUPS if k % g == 0)):
        v = quantized.part(0, stop, replace(form, rotation=group)).floats()
        trials[group] = (_sqnr(w, v), _refit(w, v))
    own, refit = max(trials, key=lambda g: trials[g][0]), max(trials, key=lambda g: trials[g][1])
    if own != form.rotation and trials[own][0] > _FITS_DB:
        named = f"group {form.rotation}" if form.rotation else "no rotation"
        what = f"a rotation in groups of {own}" if own else "no rotation"
        return f"the file names {named}, but {what} fits: {trials[own][0]:.1f} dB"
    if trials[refit][1] > _FITS_DB and trials[refit][1] - trials[refit][0] > _REFIT_GAIN:
        what = "" if refit == form.rotation else f", and the rotation is {refit or 'none'}"
        return f"the scales are not those of its rows (best scales: {trials[refit][1]:.1f} dB){what}"
    return ""


def fits(source: Source, quantized: Quantized) -> float:
    """Measure the SQNR of the first rows, to look for the layer that some integers belong to."""
    step = quantized.form.row_step
    stop = min(quantized.shape[0], -(-_TRIAL_ROWS // step) * step)
    return _sqnr(source.rows(0, stop), quantized.part(0, stop).floats())


def _sqnr(w: torch.Tensor, v: torch.Tensor) -> float:
    return decibels(float(w.double().square().sum()), float((v - w).double().square().sum()))


def _refit(w: torch.Tensor, v: torch.Tensor) -> float:
    ww, wv, vv = (torch.linalg.vecdot(a, b).double() for a, b in ((w, w), (w, v), (v, v)))
    left = (ww - wv.square() / vv.clamp_min(1e-300)).clamp_min(0).sum()
    return decibels(float(ww.sum()), float(left))
