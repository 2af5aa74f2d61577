"""SmoothQuant: move the size of loud input channels into the weight.

Xiao et al., "SmoothQuant" (2023), eq. 4: s_j = max|X_j|^alpha / max|W_j|^(1 - alpha); W' = W diag(s) and
x' = x / s leave W x as it is, with both easier to round.
"""

from dataclasses import replace

import torch

from .types import LayerStats

_LEAST = 1e-5


def pre_quant_scale(weight: torch.Tensor, channel_max: torch.Tensor, alpha: float) -> torch.Tensor:
    """What the input is multiplied by: 1 / s, float32 [K], on the weight's device; 1 for dead channels.

    weight: [N, K]. channel_max: max |x| a channel, measured on real inputs, [K].
    """
    k = weight.shape[1]
    if channel_max.shape != (k,):
        raise ValueError(f"channel_max must have shape ({k},), not {tuple(channel_max.shape)}")
    x = channel_max.to(weight.device, torch.float32)
    w = torch.maximum(weight.amax(0), weight.amin(0).neg()).float()
    scale = x.clamp_min(_LEAST).pow(alpha) / w.clamp_min(_LEAST).pow(1 - alpha)
    alive = (x > 0) & (w > 0) & torch.isfinite(scale) & (scale > 0)
    return torch.where(alive, scale, 1.0).reciprocal()


def smooth(weight: torch.Tensor, stats: LayerStats, factors: torch.Tensor) -> tuple[torch.Tensor, LayerStats]:
    """The weight [N, K] in float32 and the statistics, for inputs multiplied by `factors` [K]."""
    if stats.samples is not None:
        stats = replace(stats, samples=stats.samples.float() * factors.to(stats.samples.device))
    for field in ("channel_max", "channel_mean", "extra_directions"):
        value = getattr(stats, field)
        if value is not None:
            stats = replace(stats, **{field: value.float() * factors.to(value.device)})
    peak = None if stats.channel_max is None else stats.channel_max.amax().item() / 127
    return weight.float() / factors, replace(stats, input_scale=peak)
