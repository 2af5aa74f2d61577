"""One kernel launch as a value, and what its arguments need: row views, tile counts.

A launch is built from the same values whether it runs or is only recorded, so that the
ahead-of-time tests compile exactly what ships.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ._arch import _ARCH, Arch
from ._trace import _RECORD, _TRACE, Launched


@dataclass
class Launch:
    """One kernel launch. `args` holds every kernel parameter by name, compile-time ones too."""

    kernel: Any
    grid: tuple[int, ...]
    args: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    options: dict[str, Any] = field(default_factory=dict)

    def keywords(self) -> dict[str, Any]:
        """Compiler options. No fused multiply-add: it rounds once where the eager twin rounds twice."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": False,
            **self.options,
        }

    def submit(self, device: torch.device) -> None:
        """Launch on `device`'s current stream, or only note the launch inside `record`."""
        recorded = _RECORD.get()
        if recorded is not None:
            recorded.append(self)
            return
        with on(device):
            compiled = self.kernel[self.grid](**self.args, **self.keywords())
        trace = _TRACE.get()
        if trace is not None:
            trace.steps.append(Launched(self, compiled))


@contextlib.contextmanager
def record(arch: Arch) -> Iterator[list[Launch]]:
    """Collect launches for `arch` instead of running them: for meta tensors, without a device."""
    launches: list[Launch] = []
    tokens = _RECORD.set(launches), _ARCH.set(arch)
    try:
        yield launches
    finally:
        _RECORD.reset(tokens[0])
        _ARCH.reset(tokens[1])


def on(device: torch.device):
    """Make `device` current for a launch; nothing to do for the interpreter's CPU tensors."""
    if device.type == "cpu" or device.index is None:
        return contextlib.nullcontext()
    return torch.get_device_module(device).device(device)


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """x [.., K] as [M, K] with contiguous columns: a view where strides allow, else a copy.

    Only activations and one-time inputs come here; weights of a linear are never copied.
    """
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)
