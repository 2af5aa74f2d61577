"""NaN and Inf in tensors that a conversion carries over: nothing else would ever tell of them."""

from collections.abc import Iterator

import torch

from ...files.checkpoint import Checkpoint, TensorInfo
from ...files.dtypes import nbytes, torch_dtype
from ..plan.steps import Plan

_ELEMENTS = 1 << 20


def not_finite(checkpoint: Checkpoint, plan: Plan) -> Iterator[str]:
    """Yield a line for each kept tensor of floats that holds NaN or Inf: its name and how many.

    Reads every kept tensor once, in pieces; what is copied afterwards is then in the page cache. Tensors that
    are elsewhere are not read for it: they are looked at as they come.
    """
    for step in plan:
        if step.action == "keep" and checkpoint.is_here:
            seen = NotFinite(step.source)
            if seen.looks:
                seen.read(checkpoint)
                if seen.told:
                    yield f"{step.name}: {seen.told}"


class NotFinite:
    """The values of a tensor that are not finite, counted as its bytes come by."""

    def __init__(self, info: TensorInfo):
        self._info = info
        self._dtype = torch_dtype(info.dtype)
        self.looks = self._dtype is not None and self._dtype.is_floating_point
        self._count, self._first, self._at = 0, -1, 0

    @property
    def told(self) -> str:
        """Return what was found, in words; "" for nothing."""
        if not self._count:
            return ""
        return (
            f"holds NaN or Inf ({self._count} of {self._info.numel} values, the first at {self._first}) and "
            "is kept as it is"
        )

    def read(self, checkpoint: Checkpoint) -> None:
        """Look at all of it."""
        assert self._dtype is not None
        buffer = torch.empty(min(_ELEMENTS, self._info.numel), dtype=self._dtype)
        for start in range(0, self._info.numel, _ELEMENTS):
            part = buffer[: self._info.numel - start]
            data = part.view(torch.uint8).numpy().data
            checkpoint.read_into(self._info, data, start * nbytes(self._info.dtype, (1,)))
            self._add(part)

    def add(self, data: memoryview) -> None:
        """Look at the next bytes of it, whole elements in the order of the file."""
        if self.looks and self._dtype is not None and len(data):
            self._add(torch.frombuffer(data, dtype=self._dtype))

    def _add(self, part: torch.Tensor) -> None:
        start, self._at = self._at, self._at + len(part)
        values = part.float() if part.itemsize == 1 else part  # torch compares no FP8, and no e8m0
        low, high = values.aminmax()  # one pass: NaN wins, Inf is an end
        if bool(torch.isfinite(low) & torch.isfinite(high)):
            return
        bad = ~torch.isfinite(values)
        self._first = start + int(bad.nonzero()[0]) if self._first < 0 else self._first
        self._count += int(bad.sum())
