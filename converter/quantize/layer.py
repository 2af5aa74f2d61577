"""One layer of the plan: from its float weight to the tensors of the output."""

from __future__ import annotations

from dataclasses import dataclass

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
        passes=settings.quip_passes,
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


_LARGEST = torch.finfo(torch.float32).max * (1 - 2.0**-8)
"""Above it 127 x (w / 127) may round to Inf. The difference is half of a step of INT8."""


def _in_range(weight: torch.Tensor) -> bool:
    """Tell whether no finite value is above _LARGEST; NaN and Inf are for the algorithm to refuse."""
    largest = torch.stack(weight.aminmax()).abs().max()
    return bool(largest <= _LARGEST) or not bool(torch.isfinite(largest))


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
    within = weight
    if weight.dtype == torch.float32 and not _in_range(weight):
        within = weight.clamp(-_LARGEST, _LARGEST)
    try:
        result = quantize_layer(within, stats, options, bias, step.layer_name)
    except ValueError as e:
        if not bool(torch.isfinite(weight).all()):
            raise ConversionError(_not_finite(weight, step.name)) from e
        if "NaN or Inf" in str(e):
            raise ConversionError(_too_large(weight, step)) from e
        raise ConversionError(str(e)) from e
    return _tensors(step, result, bias), result.note


def _too_large(weight: torch.Tensor, step: Step) -> str:
    """Say that finite weights leave the range of float32 on the way."""
    rotated = bool(step.format and step.format.rotation)
    how = "rotated, they leave" if rotated else "with their scales they leave"
    return (
        f"{step.name}: holds {float(weight.abs().max()):g}; {how} the range of float32; leave this layer out "
        f"with --exclude-layers{', or convert with --no-convrot' if rotated else ''}"
    )


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


@dataclass(frozen=True)
class Cast:
    """A tensor in another dtype. lost: a sentence on values that became zero, "" where none did."""

    values: torch.Tensor
    lost: str


def cast_weight(weight: torch.Tensor, step: Step) -> Cast:
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
    count = int(((out == 0) & (weight != 0)).sum())
    if not count:
        return Cast(out, "")
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    where = f"{str(dtype).removeprefix('torch.')}'s smallest, {least:.1g}"
    return Cast(out, f"{count} of its {weight.numel()} values are below {where}, and become zero")


def _not_finite(weight: torch.Tensor, name: str) -> str:
    """Say where a weight holds NaN or Inf: they always reach a scale, by the absmax or the rotation."""
    bad = ~torch.isfinite(weight)
    first = bad.nonzero()[0].tolist() if bool(bad.any()) else [0] * weight.dim()
    names = ("row", "column") if weight.dim() == 2 else ("element",) * weight.dim()
    where = ", ".join(f"{axis} {i}" for axis, i in zip(names, first, strict=True))
    return (
        f"{name}: the weight holds NaN or Inf ({int(bad.sum())} values, the first at {where}); the file is "
        "damaged or was saved from a failed run"
    )
