"""One layer from float to its place in a checkpoint."""

import importlib
from collections.abc import Callable

import torch

from ...formats.algorithms import ALGORITHMS, canonical
from ..tensor import QuantizedTensor
from . import bias as statistics
from . import smoothquant, tiles
from .types import LayerResult, LayerStats, QuantizeOptions


def quantize_layer(
    weight: torch.Tensor,
    stats: LayerStats | None,
    options: QuantizeOptions,
    bias: torch.Tensor | None = None,
    name: str = "",
) -> LayerResult:
    """Quantize the weight [N, K] of a linear layer; pure: nothing given is changed.

    weight: float32, float16 or bfloat16. stats: its calibration, or None. bias: [N], read only for bias
    correction. name: for messages. What an option asks for and the statistics cannot give is left
    out, and the result's note says so. ValueError, naming the layer, for NaN or Inf and for shapes
    that do not fit; `QuantizeOptions` says which algorithms there are.
    """
    _check(weight, stats, name)
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    source, measured, notes = weight, stats, []
    factors = None
    if options.smoothquant is not None:
        factors, note = _smoothing(weight, stats, options)
        notes.append(note)
        if factors is not None and stats is not None:
            source, measured = smoothquant.smooth(weight, stats, factors)
    quantized, note = _function(options.algorithm)(source, measured, options, name)
    notes.append(note)
    for part, values in quantized.inner_tensors().items():
        if part != "_qdata":  # NaN and Inf always reach a scale
            tiles.refuse_non_finite(values, name)
    quantized = _as(quantized, weight.dtype)
    fixed, note = _bias(source, measured, quantized, options, bias)
    notes.append(note)
    input_scale = None
    if options.static_activations:
        input_scale, note = statistics.static_scale(measured, options)
        notes.append(note)
    return LayerResult(quantized, fixed, factors, input_scale, "; ".join(filter(None, notes)) or None)


def _function(algorithm: str) -> Callable[..., tuple[QuantizedTensor, str | None]]:
    module, _, function = ALGORITHMS[canonical(algorithm)].run.partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), function)  # type: ignore[no-any-return]


def _check(weight: torch.Tensor, stats: LayerStats | None, name: str) -> None:
    if weight.dim() != 2:
        raise ValueError(f"{name or 'layer'}: a linear weight is 2-D, not of shape {tuple(weight.shape)}")
    for field in ("samples", "channel_max", "channel_mean", "extra_directions"):
        value = None if stats is None else getattr(stats, field)
        if value is not None and value.shape[-1] != weight.shape[1]:
            raise ValueError(
                f"{name or 'layer'}: calibration {field} has {value.shape[-1]} channels, the weight "
                f"{weight.shape[1]}"
            )


def _as(quantized: QuantizedTensor, dtype: torch.dtype) -> QuantizedTensor:
    if quantized.dtype == dtype:
        return quantized
    params = {**quantized._layout_params, "orig_dtype": dtype}
    return QuantizedTensor(quantized._qdata, quantized._layout_type, params)


def _smoothing(
    weight: torch.Tensor, stats: LayerStats | None, options: QuantizeOptions
) -> tuple[torch.Tensor | None, str | None]:
    factors = None
    alpha = options.smoothquant
    if alpha is not None and stats is not None and not stats.synthetic:
        factors = smoothquant.pre_quant_scale(weight, stats, alpha, options.format.rotation > 0)
    return factors, None if factors is not None else "no measured inputs: SmoothQuant left out"


def _bias(
    source: torch.Tensor,
    stats: LayerStats | None,
    quantized: QuantizedTensor,
    options: QuantizeOptions,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor | None, str | None]:
    if not options.bias_correction:
        return None, None
    if bias is None:
        return None, "no bias to correct"
    mean = statistics.input_mean(stats)
    if mean is None:
        return None, "no measured input mean: bias left as it is"
    if not bool(torch.isfinite(mean).all()):
        return None, "the measured input mean holds NaN or Inf: bias left as it is"
    return statistics.corrected_bias(source, quantized, bias, mean), None
