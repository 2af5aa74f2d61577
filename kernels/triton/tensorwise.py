"""Tensor-wise INT8 quantization: two launches of the row kernel around one small reduction."""

import torch

from ..scales import scale_from_absmax
from ..tensorwise import _check
from ._arch import arch_of, check_group
from ._operands import Operand, empty, rows_of
from ._plan import Call, Plan, Step
from ._planned import planned
from .rowwise import CONFIGS, GIVEN, PEAK, launch_rows


def _scale_of_all(result: torch.Tensor, per_row: torch.Tensor) -> None:
    peak = per_row.amax() if per_row.numel() else torch.zeros_like(result)
    result.copy_(scale_from_absmax(peak))


def _copy(result: torch.Tensor, given: torch.Tensor) -> None:
    result.copy_(given.reshape(()))


@planned
def quantize_tensorwise(x: Operand, scale: Operand | None = None, rotation: int = 0) -> Plan:
    """Plan `kernels.quantize_tensorwise`. The first launch writes each row's absmax (no integers), the
    second quantizes with the scale of all; a given scale needs only the second.
    """
    _check(x, scale, rotation)
    check_group(arch_of(x.device), rotation)
    rows = rows_of(x)
    q = empty(x.shape, torch.int8, x.device)
    per_row = empty((rows.shape[0],), torch.float32, x.device)
    result = empty((), torch.float32, x.device)
    measured = launch_rows(CONFIGS[0], rows, q, per_row, mode=PEAK, rotation=rotation)
    rounded = launch_rows(CONFIGS[0], rows, q, per_row, result, mode=GIVEN, rotation=rotation)
    steps: list[Step]
    if scale is not None:
        steps = [Call(_copy, result, scale), rounded]
    else:
        steps = [measured, Call(_scale_of_all, result, per_row), rounded]
    if not rows.shape[0]:
        steps = [s for s in steps if isinstance(s, Call)]
    return Plan(steps, (q, result))
