"""Weights as the algorithms take them: read from the checkpoint, FP8 dequantized, LoRAs merged."""

import torch

from .checkpoint import Checkpoint
from .dtypes import FLOAT8, torch_dtype
from .errors import ConversionError
from .lora.delta import merge_into
from .memory import empty_float32
from .plan import Step

_PART = 1 << 17
"""Elements converted at once: they stay in the cache between reading and converting, in memory that the
allocator keeps."""


def read_weight(checkpoint: Checkpoint, step: Step) -> torch.Tensor:
    """The float weight [N, K] of a quantize step: float32, float16 or bfloat16.

    FP8 is dequantized to bfloat16 where it has no scale (exact), else to float32; float64 to float32. The
    step's LoRAs are merged into it; then it is float32.
    """
    if step.merges:
        return merge_into(_read_float32(checkpoint, step), step.merges, checkpoint.read_tensor)
    weight = checkpoint.read(step.name)
    if step.source.dtype in FLOAT8:
        scale = step.companions.get("scale")
        if scale is None:
            return weight.to(torch.bfloat16)
        return weight.float().mul_(_scale(checkpoint, scale))
    return weight.float() if weight.dtype == torch.float64 else weight


def read_merged(checkpoint: Checkpoint, step: Step) -> torch.Tensor:
    """A kept tensor with its LoRAs merged, in its own dtype. ConversionError where the sum overflows it."""
    merged = read_weight(checkpoint, step).to(torch_dtype(step.source.dtype))
    if not bool(torch.isfinite(merged.float()).all()):
        raise ConversionError(
            f"{step.name}: with {step.merges[0].adapter.file} merged it holds values that "
            f"{step.source.dtype} cannot"
        )
    return merged


def _read_float32(checkpoint: Checkpoint, step: Step) -> torch.Tensor:
    """The weight in float32, converted part by part: it is never held in two dtypes."""
    info = step.source
    weight = empty_float32(info.shape)
    flat, part = weight.view(-1), torch.empty(min(_PART, info.numel), dtype=torch_dtype(info.dtype))
    for start in range(0, info.numel, _PART):
        piece = part[: info.numel - start]
        checkpoint.read_into(info, memoryview(piece.view(torch.uint8).numpy()), start * piece.itemsize)
        flat[start : start + len(piece)] = piece
    scale = step.companions.get("scale")
    return weight if scale is None else weight.mul_(_scale(checkpoint, scale))


def _scale(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    return checkpoint.read(name).float().reshape(-1, 1)
