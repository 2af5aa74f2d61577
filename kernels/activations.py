"""Elementwise functions that the linear ops can fold into their input or output."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


def check(name: str | None) -> None:
    """Refuse a name that is neither None nor in ACTIVATIONS (ValueError)."""
    if name is not None and name not in ACTIVATIONS:
        raise ValueError(f"activation must be None or one of {', '.join(ACTIVATIONS)}, not {name!r}")


def apply(name: str | None, x: torch.Tensor) -> torch.Tensor:
    """The named function of x in float32, or x itself for None. ValueError for other names."""
    check(name)
    return x if name is None else ACTIVATIONS[name](x.float())
