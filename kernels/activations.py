"""Elementwise functions that the linear ops can fold into their input or output."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


def apply(name: str | None, x: torch.Tensor) -> torch.Tensor:
    """The named function of x in float32, or x itself for None. ValueError for other names."""
    if name is None:
        return x
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be None or one of {', '.join(ACTIVATIONS)}, not {name!r}")
    return ACTIVATIONS[name](x.float())
