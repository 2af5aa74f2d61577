"""What follows from measured inputs besides the integers: bias correction and static scales."""

import torch

from ...formats.names import INPUT_SCALE
from ...kernels.scales import QMAX
from ..layouts import weight_layout
from ..tensor import QuantizedTensor
from . import tiles
from .types import LayerStats, QuantizeOptions


def input_mean(stats: LayerStats | None) -> torch.Tensor | None:
    """Return E[x] [K] of real inputs: the measured mean, else the samples', else None."""
    if stats is None or stats.synthetic:
        return None
    if stats.channel_mean is not None:
        return stats.channel_mean.float()
    return None if stats.samples is None else stats.samples.float().mean(0)


def corrected_bias(
    weight: torch.Tensor, quantized: QuantizedTensor, bias: torch.Tensor, mean: torch.Tensor
) -> torch.Tensor:
    """Return b + (W - Wq) E[x], in b's dtype: the output's mean is then what it was with W.

    Nagel et al., "Data-Free Quantization" (2019), eq. 17. weight [N, K], bias [N], mean [K].
    """
    mean = mean.to(weight.device, torch.float32)
    exact = torch.cat([rows.float() @ mean for rows in weight.split(1024)])
    layout = weight_layout(quantized._layout_type)
    rounded = layout.weight_only(mean, quantized._qdata, quantized._layout_params)
    return (bias.float() + (exact - rounded).to(bias.device)).to(bias.dtype)


def static_scale(
    stats: LayerStats | None, options: QuantizeOptions
) -> tuple[torch.Tensor | None, str | None]:
    """Return ``(input_scale float32 [] or None, note)``: absmax over the levels of activations.

    A rotated layer quantizes rotated inputs, whose absmax only samples can tell.
    """
    if stats is None:
        return None, "no calibration: no static activation scale"
    rotation = options.format.rotation
    if INPUT_SCALE not in options.format.extras:
        return None, f"{options.format.layout} has no static activation scale"
    top = weight_layout(options.format.layout).input_top
    if not rotation and stats.input_scale is not None:
        return torch.tensor(stats.input_scale * (QMAX / top), dtype=torch.float32), _synthetic(stats)
    x = stats.samples
    if x is not None:
        peak = max(rows.abs().amax().item() for _, rows in tiles.row_tiles(x, options))
        return torch.tensor(peak / top, dtype=torch.float32), _synthetic(stats)
    if rotation or stats.channel_max is None:
        return None, "no calibration samples to measure a rotated input with: no static activation scale"
    return torch.tensor(stats.channel_max.amax().item() / top, dtype=torch.float32), _synthetic(stats)


def _synthetic(stats: LayerStats) -> str | None:
    return "input_scale from synthetic inputs" if stats.synthetic else None
