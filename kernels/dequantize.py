"""INT8 back to float, for every granularity, un-rotating when asked."""

import torch

from ..files.memory import empty
from . import _checks
from ._library import define
from .rotation import CHUNK, check_rotation, rotate_rows
from .scales import granularity


def _dequantize(q: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, rotation: int = 0) -> torch.Tensor:
    _checks.int8("q", q)
    _checks.has_rows("q", q)
    check_rotation(q.shape[-1], rotation)
    if dtype not in _checks.FLOATS:
        raise TypeError(f"dtype must be float32, float16 or bfloat16, not {dtype}")
    k = q.shape[-1]
    rows = q.reshape(-1, k)
    m = rows.shape[0]
    scales = _matrix_of_scales(q, scale)
    edge_m, edge_k = granularity(m, k, scales) if m else (1, k)
    out = empty(q.shape, dtype, q.device)
    out_rows = out.view(-1, k)
    step = max(1, CHUNK // k) if q.device.type == "cpu" else max(m, 1)
    step = min(step, max(m, 1))
    work = empty((step, k), torch.float32, q.device)
    spare = empty((step, k), torch.float32, q.device) if rotation else work
    for start in range(0, m, step):
        stop = min(start + step, m)
        y, part = work[: stop - start], scales
        y.copy_(rows[start:stop])
        if scales.shape[0] != 1:
            part = scales[start // edge_m : -(-stop // edge_m)]
            if edge_m > 1:
                index = torch.arange(start, stop, device=q.device) // edge_m - start // edge_m
                part = part[index]
        _scale_columns(y, part, edge_k)
        if rotation:
            rotate_rows(y, rotation, y, spare[: stop - start])
        out_rows[start:stop] = y
    return out


def _scale_columns(y: torch.Tensor, scales: torch.Tensor, edge: int) -> None:
    """Multiply each block of `edge` columns of y [n, K] by its column of `scales`, in place."""
    if scales.shape[1] == 1:
        y.mul_(scales)
        return
    whole = y.shape[1] // edge
    y[:, : whole * edge].unflatten(1, (whole, edge)).mul_(scales[:, :whole, None])
    y[:, whole * edge :].mul_(scales[:, whole:])


def _matrix_of_scales(q: _checks.Described, scale):
    """Return `scale` as float32 [1, 1], [rows, 1] or [row blocks, column blocks].

    A scale with fewer axes than q is refused: [N] for q [N, N] would scale columns instead of rows.
    """
    if scale.numel() == 1:
        return scale.float().reshape(1, 1)
    if scale.dim() != q.dim() or (q.dim() != 2 and scale.shape[:-1] != q.shape[:-1]):
        raise ValueError(
            f"scale of shape {tuple(scale.shape)} does not fit integers {list(q.shape)}: expected one "
            f"element or {list(q.shape[:-1])} and one entry per row or block of columns"
        )
    return scale.float().reshape(-1, scale.shape[-1])


def _fake(q: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, rotation: int = 0) -> torch.Tensor:
    return torch.empty(q.shape, dtype=dtype, device=q.device)


_op = define(
    "dequantize(Tensor q, Tensor scale, ScalarType dtype, int rotation=0) -> Tensor",
    eager=_dequantize,
    fake=_fake,
    device="dequantize.dequantize",
)


def dequantize(
    q: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype = torch.float32, rotation: int = 0
) -> torch.Tensor:
    """Return q * scale as `dtype`, for integers q [.., K].

    scale: float32, one element (tensor-wise), [.., 1] (row-wise) or one entry per block with
        power-of-two edges ([ceil(M / bm), ceil(K / bk)]; see `scales.granularity`).
    rotation: the group the integers were rotated with; the result is then un-rotated.
    TypeError for q not int8 or dtype not a float; ValueError for shapes that do not fit.
    """
    return _op(q, scale, dtype, rotation)
