"""Row-wise INT8 quantization, with the rotation in the same pass over memory."""

import torch

from ..files.memory import empty
from . import _checks
from ._library import define
from .rotation import check_rotation, float_chunks
from .scales import absmax_rows, quantize_with, scale_from_absmax


def _check(x: _checks.Described, rotation: int, scale: _checks.Described | None) -> None:
    _checks.floating("x", x)
    _checks.has_rows("x", x)
    check_rotation(x.shape[-1], rotation)
    if scale is not None and scale.numel() != 1 and scale.shape != (*x.shape[:-1], 1):
        raise ValueError(
            f"scale must have one element or shape {(*x.shape[:-1], 1)}, not {tuple(scale.shape)}"
        )


def _quantize_rowwise(x: torch.Tensor, rotation: int = 0, scale: torch.Tensor | None = None):
    _check(x, rotation, scale)
    k = x.shape[-1]
    q = empty(x.shape, torch.int8, x.device)
    scales = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    if scale is not None:
        scales.copy_(scale.reshape(()) if scale.numel() == 1 else scale)
    rows, q_rows, s_rows = x.reshape(-1, k), q.view(-1, k), scales.view(-1, 1)
    for part, work in float_chunks(rows, rotation):
        if scale is None:
            s_rows[part] = scale_from_absmax(absmax_rows(work))
        q_rows[part] = quantize_with(work, s_rows[part], saturate=scale is not None)
    return q, scales


def _fake(x: torch.Tensor, rotation: int = 0, scale: torch.Tensor | None = None):
    return (
        torch.empty(x.shape, dtype=torch.int8, device=x.device),
        torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device),
    )


_op = define(
    "quantize_rowwise(Tensor x, int rotation=0, Tensor? scale=None) -> (Tensor, Tensor)",
    eager=_quantize_rowwise,
    fake=_fake,
    device="rowwise.quantize_rowwise",
)


def quantize_rowwise(
    x: torch.Tensor, rotation: int = 0, scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize x [.., K] to int8 with one scale per row; returns ``(q int8 [.., K], scale [.., 1])``.

    rotation: 0, or a group size (GROUPS) whose regular Hadamard is applied to each row first.
    scale: None takes absmax / 127 of what is quantized; a given scale (one element or
        [.., 1], float32) saturates at +-127 and is returned broadcast to [.., 1].
    q = round_half_even(x * (1 / scale)). All-zero rows get zeros and scale 1e-30. NaN or Inf
    in a row shows as a non-finite scale; with a given scale NaN becomes 0. TypeError for a non-float x;
    ValueError for a rotation that does not divide K or a scale of another shape.
    """
    return _op(x, rotation, scale)
