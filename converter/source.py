"""Weights as the algorithms take them: read from the checkpoint, dequantized where stored as FP8."""

import torch

from .checkpoint import Checkpoint
from .dtypes import FLOAT8
from .plan import Step


def read_weight(checkpoint: Checkpoint, step: Step) -> torch.Tensor:
    """The float weight [N, K] of a quantize step: float32, float16 or bfloat16.

    FP8 is dequantized to bfloat16 where it has no scale (exact), else to float32; float64 to float32.
    """
    weight = checkpoint.read(step.name)
    if step.source.dtype in FLOAT8:
        scale = step.companions.get("scale")
        if scale is None:
            return weight.to(torch.bfloat16)
        return weight.float().mul_(checkpoint.read(scale).float().reshape(-1, 1))
    return weight.float() if weight.dtype == torch.float64 else weight
