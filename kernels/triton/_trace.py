"""What a call of a launcher does to a device, noted so that `_replay` can do it again.

All of it is a launch (`_launch.Launch.submit`), memory from `empty`, or a `library` call.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

_RECORD: ContextVar[list | None] = ContextVar("convert_to_quant_record", default=None)
_TRACE: ContextVar["Trace | None"] = ContextVar("convert_to_quant_trace", default=None)


def recording() -> bool:
    """Whether launches are collected and not run."""
    return _RECORD.get() is not None


class Launched(NamedTuple):
    """A launch that was made, and the kernel compiled for it (None under the interpreter)."""

    launch: Any
    compiled: Any


class Called(NamedTuple):
    """A function of PyTorch's own operations that was called between launches."""

    function: Callable
    args: tuple


@dataclass
class Trace:
    """What one call of a launcher did.

    made: the memory it took. kept: whether another call of the same shapes may do the same.
    """

    steps: list[Launched | Called] = field(default_factory=list)
    made: list[torch.Tensor] = field(default_factory=list)
    kept: bool = True


@contextlib.contextmanager
def tracing(trace: Trace | None) -> Iterator[None]:
    """Note into `trace` what is done inside the block; None notes nothing (measurements, nested calls)."""
    token = _TRACE.set(trace)
    try:
        yield
    finally:
        _TRACE.reset(token)


def unsettled() -> None:
    """The call under way made a choice that a later call of the same shapes need not make."""
    trace = _TRACE.get()
    if trace is not None:
        trace.kept = False


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Unwritten contiguous memory for a result, or for what passes from launch to launch."""
    made = torch.empty(shape, dtype=dtype, device=device)
    trace = _TRACE.get()
    if trace is not None:
        trace.made.append(made)
    return made


def library(function: Callable, *args: Any) -> None:
    """function(*args): PyTorch's own operations, which write into tensors of `empty` among the args.

    Not run inside `record`, whose tensors are meta.
    """
    if recording():
        return
    with tracing(None):
        function(*args)
    trace = _TRACE.get()
    if trace is not None:
        trace.steps.append(Called(function, args))
