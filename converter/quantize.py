"""One layer of the plan: from its float weight to the tensors of the output."""

import torch

from ..kernels import quantize_blockwise, quantize_rowwise, quantize_tensorwise
from .contract import LayerFormat
from .errors import ConversionError
from .plan import Step


def quantize_weight(weight: torch.Tensor, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    """The integers and the scale of a step, as they are stored.

    ConversionError names the layer when the weight holds NaN or Inf.
    """
    assert step.layer is not None
    q, scale = _quantize(weight, step.layer)
    if not bool(torch.isfinite(scale).all()):
        raise ConversionError(_not_finite(weight, step.name))
    shape = step.layer.scale_shape((weight.shape[0], weight.shape[1]))
    return q, scale.view(shape)


def _quantize(weight: torch.Tensor, layer: LayerFormat) -> tuple[torch.Tensor, torch.Tensor]:
    if layer.scaling == "row":
        return quantize_rowwise(weight, layer.rotation)
    if layer.scaling == "tensor":
        return quantize_tensorwise(weight, None, layer.rotation)
    return quantize_blockwise(weight, layer.block_size, layer.block_size)


def cast_weight(weight: torch.Tensor, step: Step) -> torch.Tensor:
    """The weight as float16. ConversionError names the layer when a value does not fit."""
    out = weight.to(torch.float16)
    if not bool(torch.isfinite(out).all()):
        if not bool(torch.isfinite(weight).all()):
            raise ConversionError(_not_finite(weight, step.name))
        raise ConversionError(
            f"{step.name}: holds {float(weight.abs().max()):g}, beyond float16's 65504; leave this layer out "
            f"of --fallback fp16 and --custom-type fp16"
        )
    return out


def _not_finite(weight: torch.Tensor, name: str) -> str:
    """NaN or Inf in a weight always reaches a scale, through the absmax or the rotation."""
    bad = ~torch.isfinite(weight)
    row, column = (int(i) for i in bad.nonzero()[0]) if bool(bad.any()) else (0, 0)
    return (
        f"{name}: the weight holds NaN or Inf ({int(bad.sum())} values, the first at row {row}, column "
        f"{column}); the file is damaged or was saved from a failed run"
    )
