"""Which modules of a model are linear layers."""

import torch
from torch import nn


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return {name: module} of everything with a 2-D weight and `in_features`, in the model's order."""
    return {n: m for n, m in model.named_modules() if _is_linear(m)}


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() == 2 and hasattr(module, "in_features")
