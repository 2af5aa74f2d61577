"""How well each stored layer keeps its original: weight SQNR over all rows, output SQNR on real inputs.

Layers are read in pieces of rows, so memory does not grow with a layer. What is measured is the layer as the
file describes it; where the description breaks the contract, as `stored.judge.examine` reads it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...files.checkpoint import Checkpoint, TensorInfo
from ...files.dtypes import FLOAT8, nbytes, torch_dtype
from ...formats import Format, Tensors
from ...formats.convrot import GROUPS
from ...formats.errors import ConversionError
from ...formats.names import PRE_QUANT_SCALE, WEIGHT
from ...quant.layouts import WeightLayout, weight_layout
from ..convert.check import decibels
from ..stored.companions import stored_quant
from ..stored.judge import Examined
from .pairs import read_elements

_ELEMENTS = 1 << 17
"""In a piece: it stays in the cache, and its buffers are not given back to the system each time. A model of
156 MiB took 0.8 s of one core, and 2.1 s with four million elements."""

_ELEMENTS_WITH_INPUTS = 1 << 22
"""In a piece when outputs are computed: the inputs are quantized anew for each."""

_TRIAL_ROWS = 64
_REFIT_GAIN = 6.0
_REFIT_BELOW = 35.0
_FITS_DB = 15.0


@dataclass(frozen=True)
class Quality:
    """One layer's SQNR in dB.

    weight_db: of its weight. refit_db: of its weight if every row had its best scale; where that is far above
    weight_db, the scales are not those of the rows. w8a8_db, w8a16_db: of its output with INT8 and with exact
    activations, None without inputs.
    """

    weight_db: float
    refit_db: float
    w8a8_db: float | None = None
    w8a16_db: float | None = None

    @property
    def scales_wrong(self) -> bool:
        """Tell whether other row scales would do much better, which rounding cannot explain.

        Only asked of poor layers: above `_REFIT_BELOW` the refit is near the precision of its sums.
        """
        gain = self.refit_db - self.weight_db
        return self.weight_db < _REFIT_BELOW and gain > _REFIT_GAIN and self.refit_db > _FITS_DB


@dataclass(frozen=True)
class Source:
    """An original weight, read in rows: floats, or FP8 with its scale."""

    checkpoint: Checkpoint
    info: TensorInfo
    scale: torch.Tensor | None

    @classmethod
    def of(cls, checkpoint: Checkpoint, name: str) -> "Source":
        """Open a weight; ConversionError for one without values to read: INT8, or an FP8 scale of no row."""
        info = checkpoint.tensors[name]
        quant = stored_quant(checkpoint, name)
        scale = None
        if quant and quant.scale and info.dtype in FLOAT8:
            scale = checkpoint.read(quant.scale).float().reshape(-1, 1)
            if scale.shape[0] not in (1, info.shape[0]):
                raise ConversionError(
                    f"{name}: the original's FP8 scale has {scale.shape[0]} values, not one or one per row"
                )
        elif not info.dtype.startswith(("F", "BF")):
            raise ConversionError(
                f"{name}: the original is stored as {info.dtype}; compare with the unquantized file"
            )
        return cls(checkpoint, info, scale)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Read float32 rows [start, stop)."""
        k = self.info.shape[1]
        rows = read_elements(self.checkpoint, self.info, start * k, stop * k).view(-1, k).float()
        if self.scale is not None:
            rows.mul_(self.scale if self.scale.shape[0] == 1 else self.scale[start:stop])
        return rows


@dataclass(frozen=True)
class Quantized:
    """A stored layer, read in rows.

    form: the format it is read in. infos: its tensors as they should stand. beside: the values of all but
    the weight, in those dtypes and shapes.
    """

    checkpoint: Checkpoint
    info: TensorInfo
    form: Format
    infos: Tensors
    beside: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, checkpoint: Checkpoint, examined: Examined) -> "Quantized":
        """Open a layer; ConversionError when the file does not say how to read it."""
        stored, form = examined.layer, examined.format
        if form is None:
            raise ConversionError(
                f"{stored.name}: cannot be read as its file describes it; ctq inspect says why"
            )
        infos = examined.stored
        beside = {}
        for suffix, info in stored.tensors.items():
            values = checkpoint.read(info.name)
            dtype = torch_dtype(infos[suffix].dtype)
            beside[suffix] = (values if dtype is None else values.to(dtype)).reshape(infos[suffix].shape)
        return cls(checkpoint, stored.weight, form, infos, beside)

    @property
    def layout(self) -> type[WeightLayout]:
        """The layout that such weights have in memory."""
        return weight_layout(self.form.layout)

    @property
    def shape(self) -> tuple[int, int]:
        """[N, K] of the weight that the layer stands for."""
        return self.form.shape(self.info.shape)

    def pieces(self, size: int = _ELEMENTS) -> Iterator[tuple[int, int]]:
        """Yield row ranges of about `size` elements that start where rows can be taken apart."""
        n, k = self.shape
        edge = self.form.row_step
        step = max(1, size // k // edge) * edge
        return ((start, min(start + step, n)) for start in range(0, n, step))

    def part(self, start: int, stop: int, form: Format | None = None) -> "Part":
        """Read rows [start, stop), as stored or as if in another format with the same tensors."""
        form, width = form or self.form, self.info.nbytes // self.info.shape[0] // _itemsize(self.info)
        parts = form.rows(start, stop - start, self.infos)
        first, last = parts[WEIGHT] or (0, self.info.shape[0])
        q = read_elements(self.checkpoint, self.info, first * width, last * width)
        q = q.view(last - first, *self.info.shape[1:])
        beside = {s: t if (p := parts[s]) is None else t[p[0] : p[1]] for s, t in self.beside.items()}
        return Part(self.layout, *self.layout.load(form, {WEIGHT: q, **beside}, torch.float32))


@dataclass(frozen=True)
class Part:
    """Some rows of a stored layer, as its layout holds them."""

    layout: type[WeightLayout]
    qdata: torch.Tensor
    params: dict[str, Any]

    def floats(self) -> torch.Tensor:
        """Return the float32 values [n, K]."""
        return self.layout.dequantize(self.qdata, **self.params)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T as a model runs it."""
        smooth = self.params.get(PRE_QUANT_SCALE)
        inner = x if smooth is None else x * smooth
        return self.layout.linear(inner, self.qdata, self.params, None)


def _itemsize(info: TensorInfo) -> int:
    return nbytes(info.dtype, (1,))


def measure(source: Source, quantized: Quantized, inputs: torch.Tensor | None = None) -> Quality:
    """Measure a layer over all rows. inputs: [n, K] activations as the layer gets them, any float dtype."""
    inputs = None if inputs is None else inputs.float()
    sums = torch.zeros(6, dtype=torch.float64)
    for start, stop in quantized.pieces(_ELEMENTS if inputs is None else _ELEMENTS_WITH_INPUTS):
        w, part = source.rows(start, stop), quantized.part(start, stop)
        v = part.floats()
        dots = [torch.linalg.vecdot(a, b).double() for a, b in ((w, w), (w, v), (v, v))]
        ww, wv, vv = dots
        sums[1] += (ww - wv.square() / vv.clamp_min(1e-300)).clamp_min(0).sum()
        if inputs is not None:
            sums[3:] += _output_sums(inputs, w, v, part)
        sums[2] += ww.sum()
        sums[0] += torch.linalg.vecdot(error := v.sub_(w), error).double().sum()
    noise, refit, signal, y, a8, a16 = (float(x) for x in sums)
    quality = Quality(decibels(signal, noise), decibels(signal, refit))
    if inputs is None:
        return quality
    a8_db = decibels(y, a8) if quantized.layout.quantizes_activations else None
    return Quality(quality.weight_db, quality.refit_db, a8_db, decibels(y, a16))


def _output_sums(x: torch.Tensor, w: torch.Tensor, v: torch.Tensor, part: Part) -> torch.Tensor:
    """Return [signal, noise with INT8 activations, noise with exact ones] of the outputs of some rows."""
    y = x @ w.t()
    a8 = 0.0
    if part.layout.quantizes_activations:
        a8 = float(part.linear(x).sub_(y).double().square().sum())
    a16 = float((x @ v.t()).sub_(y).double().square().sum())
    return torch.tensor([float(y.double().square().sum()), a8, a16], dtype=torch.float64)


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
