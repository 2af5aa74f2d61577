"""RMSNorm, as the linear ops fold it into their input (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467)."""

import math

import torch

from . import _checks


def check(
    weight: _checks.Described | None, eps: float, columns: int, input_activation: str | None, block: int
) -> None:
    """Refuse a norm that does not fit `columns`, or what stands beside it and cannot.

    weight: [columns] of a float type; None for no norm, whatever `eps` is.
    """
    if weight is None:
        return
    _checks.floating("norm_weight", weight)
    if tuple(weight.shape) != (columns,):
        raise ValueError(f"norm_weight must have shape ({columns},), not {tuple(weight.shape)}")
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"norm_eps must be a number of 0 or more, not {eps}")
    if input_activation is not None:
        raise ValueError(f"a norm and {input_activation} of one input: which comes first cannot be said")
    if block:
        raise ValueError("activations in blocks have no norm: call rms_norm before")


def apply(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """Return x / rms(x) * weight per row, in float32 and rounded once to x's type; x itself without a weight.

    x: [.., K]. weight: [K]. rms: the root of the mean square plus `eps`.
    """
    if weight is None:
        return x
    y = x.float()
    factor = y.square().mean(-1, keepdim=True).add_(eps).sqrt_().reciprocal_()
    return (y * factor).mul_(weight.float()).to(x.dtype)
