"""Tensor-wise INT8 quantization: two launches of the row kernel around one small reduction."""

import torch

from ..scales import scale_from_absmax
from ..tensorwise import _check
from ._arch import arch_of, check_group
from ._launch import rows_of
from ._replay import planned
from ._trace import empty, library
from .rowwise import CONFIGS, GIVEN, PEAK, launch_rows


def _scale_of_all(result: torch.Tensor, per_row: torch.Tensor) -> None:
    peak = per_row.amax() if per_row.numel() else torch.zeros_like(result)
    result.copy_(scale_from_absmax(peak))


def _copy(result: torch.Tensor, given: torch.Tensor) -> None:
    result.copy_(given.reshape(()))


@planned
def quantize_tensorwise(x: torch.Tensor, scale: torch.Tensor | None = None, rotation: int = 0):
    """`kernels.quantize_tensorwise`. The first launch writes each row's absmax (no integers), the
    second quantizes with the scale of all; a given scale needs only the second.
    """
    _check(x, scale, rotation)
    check_group(arch_of(x.device), rotation)
    rows = rows_of(x)
    q = empty(x.shape, torch.int8, x.device)
    per_row = empty((rows.shape[0],), torch.float32, x.device)
    result = empty((), torch.float32, x.device)
    if scale is not None:
        library(_copy, result, scale)
    else:
        if rows.shape[0]:
            launch_rows(CONFIGS[0], rows, q, per_row, mode=PEAK, rotation=rotation).submit(x.device)
        library(_scale_of_all, result, per_row)
    if rows.shape[0]:
        launch_rows(CONFIGS[0], rows, q, per_row, result, mode=GIVEN, rotation=rotation).submit(x.device)
    return q, result
