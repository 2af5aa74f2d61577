"""The check of every written layer: what is in the file, by its own metadata, against its source.

A wrong scale or rotation flag gives noise in ComfyUI and no error; here it shows as about -3 dB.
"""

import math
from dataclasses import dataclass

import torch

from ...files.writer import OutputFile
from ...formats.errors import ConversionError
from ..contract import PRE_QUANT_SCALE, SCALE, decode_config, dequantize_rows, parse_format
from ..plan.steps import Step

REFUSE_DB = 3.0
"""Below this a layer is noise: -3 dB is a wrong flag, 8 dB an honest per-tensor layer with outliers."""

WARN_DB = 20.0
"""Below this a person should look."""

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


def sample_rows(weight: torch.Tensor, block_size: int, every_row: bool) -> Sample:
    """The rows to compare: all of a small layer or when asked, else evenly spread runs, one row in eight.

    A wrong flag, scale shape, offset or transposition spoils every row, so a spread of rows sees it at an
    eighth of the cost; runs start at block edges so that block scales line up. bfloat16 rows are kept as
    they are: half the memory.
    """
    n = weight.shape[0]
    run = max(_RUN, block_size)
    if every_row or weight.numel() <= _SMALL or n <= 2 * run:
        return Sample((slice(0, n),), (weight,))
    starts = list(range(0, n, run))
    chosen = starts[:: max(1, min(_EVERY, len(starts) // 2))]
    runs = tuple(slice(s, min(s + run, n)) for s in chosen)
    return Sample(runs, tuple(weight[r].clone() for r in runs))


def check_layer(file: OutputFile, step: Step, sample: Sample) -> float:
    """Weight SQNR in dB of a layer as it stands in the file.

    Reads the weight's rows, its scale and its ``comfy_quant`` back from the file. inf where nothing was
    lost. ConversionError below REFUSE_DB.
    """
    weight, scale, config = step.outputs[:3]
    smoothing = _smoothing(file, step)
    raw = file.read(scale.name, 0, scale.nbytes)
    scales = torch.frombuffer(bytearray(raw), dtype=torch.float32).view(scale.shape)
    text = file.read(config.name, 0, config.nbytes)
    layer = parse_format(decode_config(text, config.name), scale.shape, config.name)
    columns = weight.shape[1]
    signal = noise = 0.0
    for run, source in zip(sample.runs, sample.rows, strict=True):
        raw = file.read(weight.name, run.start * columns, (run.stop - run.start) * columns)
        q = torch.frombuffer(bytearray(raw), dtype=torch.int8).view(-1, columns)
        rows = dequantize_rows(q, scales, layer, run.start)
        if smoothing is not None:
            rows.mul_(smoothing)
        flat = source.float().reshape(-1)
        error = rows.view(-1).sub_(flat)
        signal += float(torch.dot(flat, flat))
        noise += float(torch.dot(error, error))
    sqnr = decibels(signal, noise)
    if not sqnr >= REFUSE_DB:
        raise ConversionError(
            f"{step.name}: written as {layer.describe()}, it keeps only {sqnr:.1f} dB of its source "
            f"({SCALE} or the weight does not fit this format); leave it out or give it another scaling mode"
        )
    return sqnr


def _smoothing(file: OutputFile, step: Step) -> torch.Tensor | None:
    """What the layer's input is multiplied by, so that its weight stands for the source divided by it."""
    for output in step.outputs[3:]:
        if output.name.endswith(PRE_QUANT_SCALE):
            raw = file.read(output.name, 0, output.nbytes)
            return torch.frombuffer(bytearray(raw), dtype=torch.float32)
    return None


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise): inf for no noise, -inf for noise without signal."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
