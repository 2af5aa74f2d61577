"""The residual that the linear ops fold into their output: residual + residual_scale * y."""

import torch

from . import _checks


def check(
    residual: _checks.Described | None, scale: _checks.Described | None, shape: tuple[int, ...]
) -> None:
    """Refuse a residual that is not floats of the result's shape [.., N], or a scale that is not [N]."""
    if residual is None:
        if scale is not None:
            raise ValueError("residual_scale without a residual: there is nothing that it would be added to")
        return
    _checks.floating("residual", residual)
    if tuple(residual.shape) != shape:
        raise ValueError(f"residual must have the result's shape {shape}, not {tuple(residual.shape)}")
    if scale is not None:
        _checks.floating("residual_scale", scale)
        if tuple(scale.shape) != shape[-1:]:
            raise ValueError(f"residual_scale must have shape {shape[-1:]}, not {tuple(scale.shape)}")


def add(
    y: torch.Tensor, residual: torch.Tensor, scale: torch.Tensor | None, out_dtype: torch.dtype
) -> torch.Tensor:
    """Return residual + scale * y of a float32 y that may be overwritten, rounded once to `out_dtype`."""
    if scale is not None:
        y = y.mul_(scale.float())
    return y.add_(residual.float()).to(out_dtype)
