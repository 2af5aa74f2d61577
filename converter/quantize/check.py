"""The check of every written layer: what is in the file, by its own metadata, against its source.

A wrong scale or rotation flag gives noise in ComfyUI and no error; here it shows as about -3 dB.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ...files.dtypes import nbytes, torch_dtype
from ...files.memory import empty
from ...files.writer import OutputFile
from ...formats import ConversionError, Format, StoredTensor, Tensors, read_format
from ...formats.config import decode_config
from ...formats.names import CONFIG, PRE_QUANT_SCALE, tensor_name
from ...kernels.scales import absmax_rows
from ...quant.layouts import WeightLayout, weight_layout
from ..plan.steps import Step

REFUSE_DB = 3.0
"""Below this a layer is noise: -3 dB is a wrong flag, 8 dB an honest per-tensor layer with outliers."""

WARN_DB = 20.0
"""Below this a person should look."""

_EXTREME = 1e12
"""Beyond it and its inverse, squares and their sums leave the range of float32."""

_NOTHING = 1e-27
"""Weights this small are nothing beside any others; the smallest scale is 1e-30."""

_RUN = 128
_EVERY = 8
_SMALL = 1 << 20


@dataclass(frozen=True)
class Sample:
    """Rows of a source weight that the check will compare: slices, and the rows as float32."""

    runs: tuple[slice, ...]
    rows: tuple[torch.Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes the sample holds."""
        return sum(r.nbytes for r in self.rows)


def sample_rows(weight: torch.Tensor, row_step: int, every_row: bool) -> Sample:
    """Take the rows to compare: all of a small layer or when asked, else evenly spread runs, one in eight.

    A wrong flag, scale shape, offset or transposition spoils every row, so a spread of rows sees it at an
    eighth of the cost; runs start at multiples of `row_step`, so that scales line up. bfloat16 rows are kept
    as they are: half the memory.
    """
    n = weight.shape[0]
    run = max(_RUN, row_step)
    if every_row or weight.numel() <= _SMALL or n <= 2 * run:
        return Sample((slice(0, n),), (weight,))
    starts = list(range(0, n, run))
    chosen = starts[:: max(1, min(_EVERY, len(starts) // 2))]
    runs = tuple(slice(s, min(s + run, n)) for s in chosen)
    return Sample(runs, tuple(weight[r].clone() for r in runs))


@dataclass(frozen=True)
class Inputs:
    """What outputs are compared on. tokens: [n, K]. bias: [N] of the source, None where it stays.

    mean: [N], what the mean of folded inputs gives, which is in the bias; it counts as signal, not as noise.
    factors: [N], what a fold divided the rows by; outputs are compared as they were before, as they count in
    the model.
    """

    tokens: torch.Tensor
    bias: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    factors: torch.Tensor | None = None


@dataclass(frozen=True)
class Checked:
    """What the check of a layer found. zeroed: a sentence on weights that became zero, "" where none did.

    sqnr_db: of the weight. output_db: of the outputs; None without inputs, or beyond float32's range.
    """

    sqnr_db: float
    zeroed: str
    output_db: float | None = None


def check_layer(file: OutputFile, step: Step, sample: Sample, inputs: Inputs | None = None) -> Checked:
    """Measure the weight SQNR in dB of a layer as it stands in the file, and of its outputs for `inputs`.

    Reads its ``comfy_quant``, and its tensors in the rows of the sample, back from the file. inf where
    nothing was lost. Outputs are computed as the layer runs: with INT8 activations where its format has them.
    ConversionError below REFUSE_DB, but for a layer of which every weight is too small for any scale: that is
    only told.
    """
    layer = _Written.of(file, step)
    outputs = None if inputs is None else _Outputs(inputs, layer.bias(step))
    signal = noise = 0.0
    zeroed, rows, largest = 0, 0, 0.0
    for run, source in zip(sample.runs, sample.rows, strict=True):
        given = source if source.dtype == torch.float32 else empty(source.shape, torch.float32).copy_(source)
        written = layer.rows(run.start, run.stop - run.start)
        if outputs is not None:
            outputs.add(run, given, written)
        values = written.floats()
        peaks = absmax_rows(given).squeeze(1)
        gone = (absmax_rows(values).squeeze(1) == 0) & (peaks > 0)
        if bool(gone.any()):
            zeroed, largest = zeroed + int(gone.sum()), max(largest, float(peaks[gone].max()))
        rows += len(peaks)
        unit = in_range(peaks)
        flat = given.reshape(-1) * unit if unit != 1.0 else given.reshape(-1)
        error = values.reshape(-1).mul_(unit).sub_(flat) if unit != 1.0 else values.reshape(-1).sub_(flat)
        signal += float(torch.dot(flat, flat)) / unit**2
        noise += float(torch.dot(error, error)) / unit**2
    sqnr = decibels(signal, noise)
    text = f"{zeroed} of {rows} rows looked at become zero: no weight of theirs is above {largest:.2g}"
    if not sqnr >= REFUSE_DB and not 0 < largest < _NOTHING:
        raise ConversionError(
            f"{step.name}: written as {layer.form.describe()}, it keeps only {sqnr:.1f} dB of its source "
            f"(a scale or the weight does not fit this format); leave it out or give it another scaling mode"
        )
    return Checked(sqnr, text if zeroed else "", None if outputs is None else outputs.sqnr_db)


def in_range(peaks: torch.Tensor) -> float:
    """Return the power of two that brings values with these peaks near one; 1 where squares stay in range."""
    top = float(peaks.max()) if len(peaks) else 0.0
    if not 0 < top < math.inf or 1 / _EXTREME < top < _EXTREME:
        return 1.0
    return 2.0 ** -max(-126, min(126, math.frexp(top)[1]))


class _Outputs:
    """Sums over the outputs of some rows: as the source has them, and what they lose."""

    def __init__(self, inputs: Inputs, bias: torch.Tensor | None) -> None:
        self._x, self._given, self._bias = inputs.tokens.float(), inputs.bias, bias
        self._mean, self._factors = inputs.mean, inputs.factors
        self._signal = self._noise = 0.0

    def add(self, run: slice, weight: torch.Tensor, written: "_Rows") -> None:
        """Take in the outputs of rows `run`; a bias counts by what it was changed."""
        exact = self._x @ weight.T
        lost = written.linear(self._x).float() - exact
        if self._bias is not None and self._given is not None:
            lost += self._bias[run].float() - self._given[run].float()
        if self._factors is not None:
            exact *= self._factors[run]
            lost *= self._factors[run]
        signal = exact.double() if self._mean is None else exact.double() + self._mean[run]
        self._signal += float(signal.square().sum())
        self._noise += float(lost.double().square().sum())

    @property
    def sqnr_db(self) -> float | None:
        """Return 10 log10(|y|^2 / |y - y'|^2), None where a sum is not finite."""
        finite = math.isfinite(self._signal) and math.isfinite(self._noise)
        return decibels(self._signal, self._noise) if finite else None


@dataclass(frozen=True)
class _Rows:
    """Some rows of a layer, as a loader would hold them."""

    layout: type[WeightLayout]
    qdata: torch.Tensor
    params: dict[str, Any]

    def floats(self) -> torch.Tensor:
        """Return the float32 values [n, K]."""
        return self.layout.dequantize(self.qdata, **self.params)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T as a model runs it."""
        smooth = self.params.get(PRE_QUANT_SCALE)
        return self.layout.linear(x if smooth is None else x * smooth, self.qdata, self.params, None)


@dataclass(frozen=True)
class _Written:
    """A layer as it stands in a file in the making: its format, read from there, and its tensors."""

    file: OutputFile
    layer: str
    form: Format
    tensors: Tensors

    @classmethod
    def of(cls, file: OutputFile, step: Step) -> "_Written":
        layer = step.layer_name
        config = next(o for o in step.outputs if o.name == tensor_name(layer, CONFIG))
        text = decode_config(file.read(config.name, 0, config.nbytes), config.name)
        own = {o.name.removeprefix(f"{layer}."): o for o in step.outputs if o.name.startswith(f"{layer}.")}
        tensors = {s: StoredTensor(s, o.dtype, o.shape) for s, o in own.items() if s not in (CONFIG, "bias")}
        form = read_format(text, tensors, layer)
        return cls(file, layer, form, form.matrix(tensors))

    def bias(self, step: Step) -> torch.Tensor | None:
        """Return the bias [N] that the step wrote, None where it wrote none."""
        own = next((o for o in step.outputs if o.name == tensor_name(self.layer, "bias")), None)
        return None if own is None else self._read(StoredTensor("bias", own.dtype, own.shape), None)

    def rows(self, first: int, count: int) -> _Rows:
        """Return rows as a loader would hold them."""
        parts = self.form.rows(first, count, self.tensors)
        stored = {s: self._read(self.tensors[s], part) for s, part in parts.items()}
        layout = weight_layout(self.form.layout)
        return _Rows(layout, *layout.load(self.form, stored, torch.float32))

    def _read(self, tensor: StoredTensor, part: tuple[int, int] | None) -> torch.Tensor:
        """Read a tensor, or a part of it along its first axis, from the file."""
        name, shape = tensor_name(self.layer, tensor.suffix), tensor.shape
        first, last = part if part is not None else (0, shape[0] if shape else 1)
        width = nbytes(tensor.dtype, shape[1:])
        raw = self.file.read(name, first * width, (last - first) * width)
        dtype = torch_dtype(tensor.dtype)
        assert dtype is not None, f"{name} was written, so torch has its dtype"
        values = torch.frombuffer(bytearray(raw), dtype=dtype)
        return values.view((last - first, *shape[1:]) if shape else ())


def written_rows(file: OutputFile, step: Step, count: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (first row, float32 rows) of a layer as it stands in the file, about `count` at a time."""
    layer, total = _Written.of(file, step), step.shape[0]
    count = -(-count // layer.form.row_step) * layer.form.row_step
    for first in range(0, total, count):
        yield first, layer.rows(first, min(count, total - first)).floats()


def decibels(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise): inf for no noise, -inf for noise without signal or without bounds."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal / noise > 0 else -math.inf
