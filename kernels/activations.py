"""Functions that the linear ops can fold into their input or output.

Gated ones halve their last axis and serve as an input only: "swiglu" is silu(first half) * second half
(Shazeer 2020, https://arxiv.org/abs/2002.05202), as one projection to gate and up gives it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}
"""Elementwise functions."""

GATED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"swiglu": F.silu}
"""Gated functions, by what is applied to the gate."""


def check(name: str | None) -> None:
    """Refuse a name that is neither None nor in ACTIVATIONS (ValueError)."""
    if name is not None and name not in ACTIVATIONS:
        raise ValueError(f"activation must be None or one of {', '.join(ACTIVATIONS)}, not {name!r}")


def check_input(name: str | None) -> None:
    """Refuse a name that is neither None nor in ACTIVATIONS or GATED (ValueError)."""
    if name is not None and name not in ACTIVATIONS and name not in GATED:
        known = ", ".join((*ACTIVATIONS, *GATED))
        raise ValueError(f"input activation must be None or one of {known}, not {name!r}")


def halves(name: str | None) -> int:
    """Return the columns of input per column of output: 2 for a gated function, else 1."""
    return 2 if name in GATED else 1


def apply(name: str | None, x: torch.Tensor) -> torch.Tensor:
    """Return the named function of x in float32, or x itself for None; ValueError for other names.

    x: [.., K]; a gated function returns [.., K / 2].
    """
    check_input(name)
    if name in GATED:
        gate, up = x.float().chunk(2, -1)
        return GATED[name](gate).mul_(up)
    return x if name is None else ACTIVATIONS[name](x.float())
