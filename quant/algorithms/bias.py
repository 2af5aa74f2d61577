"""What follows from measured inputs besides the integers: bias correction and static scales."""

import torch

from ...kernels import int8_weight_only_linear
from ..int8_layouts import BlockWiseINT8Layout
from ..layout_ops import weight_scale
from ..tensor import QuantizedTensor
from . import grid
from .types import LayerStats, QuantizeOptions


def input_mean(stats: LayerStats | None) -> torch.Tensor | None:
    """E[x] [K] of real inputs: the measured mean, else the samples', else None."""
    if stats is None or stats.synthetic:
        return None
    if stats.channel_mean is not None:
        return stats.channel_mean.float()
    return None if stats.samples is None else stats.samples.float().mean(0)


def corrected_bias(
    weight: torch.Tensor, quantized: QuantizedTensor, bias: torch.Tensor, mean: torch.Tensor
) -> torch.Tensor:
    """b + (W - Wq) E[x], in b's dtype: the output's mean is then what it was with W.

    Nagel et al., "Data-Free Quantization" (2019), eq. 17. weight [N, K], bias [N], mean [K].
    """
    mean = mean.to(weight.device, torch.float32)
    exact = torch.cat([rows.float() @ mean for rows in weight.split(1024)])
    rounded = int8_weight_only_linear(
        mean, quantized._qdata, weight_scale(quantized), None, quantized._layout_params.get("rotation", 0)
    )
    return (bias.float() + (exact - rounded).to(bias.device)).to(bias.dtype)


def static_scale(
    stats: LayerStats | None, options: QuantizeOptions
) -> tuple[torch.Tensor | None, str | None]:
    """``(input_scale float32 [] or None, note)``: absmax / 127 of what the layer will quantize.

    A rotated layer quantizes rotated inputs, whose absmax only samples can tell.
    """
    if stats is None:
        return None, "no calibration: no static activation scale"
    if options.scaling == "block":
        return None, f"{BlockWiseINT8Layout.__name__} has no static activation scale"
    if not options.rotation and stats.input_scale is not None:
        return torch.tensor(stats.input_scale, dtype=torch.float32), _synthetic(stats)
    x = stats.samples
    if x is not None:
        peak = max(rows.abs().amax().item() for _, rows in grid.row_tiles(x, options))
        return torch.tensor(peak / 127, dtype=torch.float32), _synthetic(stats)
    if options.rotation or stats.channel_max is None:
        return None, "no calibration samples to measure a rotated input with: no static activation scale"
    return torch.tensor(stats.channel_max.amax().item() / 127, dtype=torch.float32), _synthetic(stats)


def _synthetic(stats: LayerStats) -> str | None:
    return "input_scale from synthetic inputs" if stats.synthetic else None
