"""Tensor-wise INT8 quantization: one scale for all."""

import torch

from . import _checks
from ._library import define
from .rotation import check_rotation, float_chunks
from .scales import absmax_rows, quantize_with, scale_from_absmax


def _check(x: _checks.Described, scale: _checks.Described | None, rotation: int) -> None:
    _checks.floating("x", x)
    _checks.has_rows("x", x)
    check_rotation(x.shape[-1], rotation)
    if scale is not None and scale.numel() != 1:
        raise ValueError(f"scale must have one element, not shape {tuple(scale.shape)}")


def _quantize_tensorwise(x: torch.Tensor, scale: torch.Tensor | None = None, rotation: int = 0):
    _check(x, scale, rotation)
    k = x.shape[-1]
    rows = x.reshape(-1, k)
    q = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    if scale is None:
        # Two passes: the second rotates again, because keeping rotated floats would cost
        # four bytes per element and the arithmetic is cheaper than that memory traffic.
        peaks = [absmax_rows(work).amax() for _, work in float_chunks(rows, rotation)]
        absmax = torch.stack(peaks).amax() if peaks else x.new_zeros((), dtype=torch.float32)
        out_scale = scale_from_absmax(absmax)
    else:
        out_scale = scale.to(device=x.device, dtype=torch.float32, copy=True).reshape(())
    q_rows = q.view(-1, k)
    for part, work in float_chunks(rows, rotation):
        q_rows[part] = quantize_with(work, out_scale, saturate=scale is not None)
    return q, out_scale


def _fake(x: torch.Tensor, scale: torch.Tensor | None = None, rotation: int = 0):
    return (
        torch.empty(x.shape, dtype=torch.int8, device=x.device),
        torch.empty((), dtype=torch.float32, device=x.device),
    )


_op = define(
    "quantize_tensorwise(Tensor x, Tensor? scale=None, int rotation=0) -> (Tensor, Tensor)",
    eager=_quantize_tensorwise,
    fake=_fake,
    device="tensorwise.quantize_tensorwise",
)


def quantize_tensorwise(
    x: torch.Tensor, scale: torch.Tensor | None = None, rotation: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize x to int8 with one scale; returns ``(q int8, scale float32 [])``.

    scale: None takes absmax / 127; a given one-element scale saturates at +-127.
    rotation: as in `quantize_rowwise`. Rounding, zeros, NaN and errors likewise.
    """
    return _op(x, scale, rotation)
