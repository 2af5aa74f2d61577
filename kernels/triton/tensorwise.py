"""Tensor-wise INT8 quantization: two launches of the row kernel around one small reduction."""

import torch

from ..scales import scale_from_absmax
from ..tensorwise import _check
from ._launch import arch_of, check_group, rows_of
from .rowwise import CONFIGS, GIVEN, PEAK, launch_rows


def quantize_tensorwise(x: torch.Tensor, scale: torch.Tensor | None = None, rotation: int = 0):
    """`kernels.quantize_tensorwise`. The first launch writes each row's absmax (no integers), the
    second quantizes with the scale of all; a given scale needs only the second.
    """
    _check(x, scale, rotation)
    check_group(arch_of(x.device), rotation)
    rows = rows_of(x)
    q = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    per_row = torch.empty(rows.shape[0], dtype=torch.float32, device=x.device)
    if scale is not None:
        result = scale.to(device=x.device, dtype=torch.float32, copy=True).reshape(())
    elif rows.shape[0] == 0:
        result = scale_from_absmax(torch.zeros((), dtype=torch.float32, device=x.device))
    else:
        launch_rows(CONFIGS[0], rows, q, per_row, mode=PEAK, rotation=rotation).submit(x.device)
        result = scale_from_absmax(per_row.amax())
    if rows.shape[0]:
        launch_rows(CONFIGS[0], rows, q, per_row, result, mode=GIVEN, rotation=rotation).submit(x.device)
    return q, result
