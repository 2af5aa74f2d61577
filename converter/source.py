"""Weights as the algorithms take them: read from the checkpoint, FP8 dequantized, LoRAs merged."""

import torch

from .checkpoint import Checkpoint
from .dtypes import FLOAT8, torch_dtype
from .errors import ConversionError
from .lora.delta import merge_into
from .plan import Step


def read_weight(checkpoint: Checkpoint, step: Step) -> torch.Tensor:
    """The float weight [N, K] of a quantize step: float32, float16 or bfloat16.

    FP8 is dequantized to bfloat16 where it has no scale (exact), else to float32; float64 to float32. The
    step's LoRAs are merged into it; then it is float32.
    """
    weight = _stored(checkpoint, step)
    return merge_into(weight, step.merges, checkpoint.read_tensor) if step.merges else weight


def read_merged(checkpoint: Checkpoint, step: Step) -> torch.Tensor:
    """A kept tensor with its LoRAs merged, in its own dtype. ConversionError where the sum overflows it."""
    merged = read_weight(checkpoint, step).to(torch_dtype(step.source.dtype))
    if not bool(torch.isfinite(merged.float()).all()):
        raise ConversionError(
            f"{step.name}: with {step.merges[0].adapter.file} merged it holds values that "
            f"{step.source.dtype} cannot"
        )
    return merged


def _stored(checkpoint: Checkpoint, step: Step) -> torch.Tensor:
    weight = checkpoint.read(step.name)
    if step.source.dtype in FLOAT8:
        scale = step.companions.get("scale")
        if scale is None:
            return weight.to(torch.bfloat16)
        return weight.float().mul_(checkpoint.read(scale).float().reshape(-1, 1))
    return weight.float() if weight.dtype == torch.float64 else weight
