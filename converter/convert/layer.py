"""One layer of the plan: from its float weight to the tensors of the output."""

from __future__ import annotations

import torch

from ...files.dtypes import torch_dtype
from ...formats.errors import ConversionError
from ...formats.names import INPUT_SCALE, PRE_QUANT_SCALE, tensor_name
from ...quant.algorithms import LayerResult, LayerStats, QuantizeOptions, quantize_layer
from ...quant.layouts import weight_layout
from ..options.settings import Settings
from ..plan.steps import Step


def layer_options(step: Step, settings: Settings) -> QuantizeOptions:
    """Return the options of one layer's quantization, placed where the plan says."""
    assert step.format is not None
    options = QuantizeOptions(
        algorithm=step.algorithm,
        format=step.format,
        scale_search=settings.scale_search,
        actorder=settings.quip_actorder,
        seed=settings.quip_seed,
        damping=settings.quip_damping,
        max_tokens=settings.calib_samples,
        bf16_compute=settings.bf16_compute,  # type: ignore[arg-type]
        steps=settings.num_iter,
        learning_rate=settings.lr,
        bias_correction="bias" in step.companions,
        smoothquant=settings.smoothquant_alpha if PRE_QUANT_SCALE in step.format.extra else None,
        static_activations=INPUT_SCALE in step.format.extra,
    )
    return step.placement.options(options, step.device) if step.placement is not None else options


def quantize_step(
    step: Step,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stats: LayerStats | None,
    options: QuantizeOptions,
) -> tuple[dict[str, torch.Tensor], str | None]:
    """Make the tensors that a step writes beside its ``comfy_quant``, by output name, and a report note.

    ConversionError names the layer for NaN or Inf, and for what its algorithm cannot do.
    """
    try:
        result = quantize_layer(weight, stats, options, bias, step.layer_name)
    except ValueError as e:
        if not bool(torch.isfinite(weight).all()):
            raise ConversionError(_not_finite(weight, step.name)) from e
        raise ConversionError(str(e)) from e
    return _tensors(step, result, bias), result.note


def _tensors(step: Step, result: LayerResult, bias: torch.Tensor | None) -> dict[str, torch.Tensor]:
    layer, weight = step.layer_name, result.weight
    stored = weight_layout(weight._layout_type).store(weight._qdata, weight._layout_params)[1]
    values: dict[str, torch.Tensor | None] = {tensor_name(layer, s): t for s, t in stored.items()}
    values |= {
        tensor_name(layer, INPUT_SCALE): result.input_scale,
        tensor_name(layer, PRE_QUANT_SCALE): result.pre_quant_scale,
        tensor_name(layer, "bias"): bias if result.bias is None else result.bias,
    }
    out = {}
    for planned in step.outputs:
        value = values.get(planned.name)
        if planned.name in values:
            assert value is not None, f"{planned.name} was planned and not made"
            out[planned.name] = value.reshape(planned.shape).contiguous()
    return out


def cast_weight(weight: torch.Tensor, step: Step) -> torch.Tensor:
    """Return the weight in the dtype of its output. ConversionError names it when a value does not fit."""
    dtype = torch_dtype(step.outputs[0].dtype)
    assert dtype is not None
    out = weight.to(dtype)
    if not bool(torch.isfinite(out).all()):
        if not bool(torch.isfinite(weight).all()):
            raise ConversionError(_not_finite(weight, step.name))
        raise ConversionError(
            f"{step.name}: holds {float(weight.abs().max()):g}, beyond {str(dtype).removeprefix('torch.')}'s "
            f"{torch.finfo(dtype).max:g}; leave this layer out of --fallback fp16, --custom-type fp16 and "
            f"--output-dtype (with --preserve-layers)"
        )
    return out


def _not_finite(weight: torch.Tensor, name: str) -> str:
    """Say where a weight holds NaN or Inf: they always reach a scale, by the absmax or the rotation."""
    bad = ~torch.isfinite(weight)
    row, column = (int(i) for i in bad.nonzero()[0]) if bool(bad.any()) else (0, 0)
    return (
        f"{name}: the weight holds NaN or Inf ({int(bad.sum())} values, the first at row {row}, column "
        f"{column}); the file is damaged or was saved from a failed run"
    )
