"""NaN and Inf in tensors that a conversion carries over: nothing else would ever tell of them."""

from collections.abc import Iterator

import torch

from ...files.checkpoint import Checkpoint, TensorInfo
from ...files.dtypes import FLOAT8, nbytes, torch_dtype
from ..plan.steps import Plan

_ELEMENTS = 1 << 20


def not_finite(checkpoint: Checkpoint, plan: Plan) -> Iterator[str]:
    """Yield a line for each kept tensor of floats that holds NaN or Inf: its name and how many.

    Reads every kept tensor once, in pieces; what is copied afterwards is then in the page cache.
    """
    for step in plan:
        dtype = torch_dtype(step.source.dtype)
        if step.action == "keep" and dtype is not None and dtype.is_floating_point:
            count, first = _count(checkpoint, step.source)
            if count:
                yield (
                    f"{step.name}: holds NaN or Inf ({count} of {step.source.numel} values, the first at "
                    f"{first}) and is kept as it is"
                )


def _count(checkpoint: Checkpoint, info: TensorInfo) -> tuple[int, int]:
    """Count the values that are not finite; return the count and where the first is, in order of memory."""
    dtype = torch_dtype(info.dtype)
    assert dtype is not None
    count, first = 0, -1
    buffer = torch.empty(min(_ELEMENTS, info.numel), dtype=dtype)
    for start in range(0, info.numel, _ELEMENTS):
        part = buffer[: info.numel - start]
        checkpoint.read_into(info, part.view(torch.uint8).numpy().data, start * nbytes(info.dtype, (1,)))
        values = part.float() if info.dtype in FLOAT8 else part
        low, high = values.aminmax()  # one pass: NaN wins, Inf is an end
        if bool(torch.isfinite(low) & torch.isfinite(high)):
            continue
        bad = ~torch.isfinite(values)
        first = start + int(bad.nonzero()[0]) if first < 0 else first
        count += int(bad.sum())
    return count, first
