"""What every launcher shares: the device's family, one launch as a value, and row views.

A launch is built from the same values whether it runs or is only recorded, so that the
ahead-of-time tests compile exactly what ships.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from .._library import Unsupported


class Arch(NamedTuple):
    """What a launcher needs to know of a device.

    family: "sm80" (pointer kernels: Ampere, Ada, and consumer Blackwell, whose 99 KiB of shared
        memory and mma.sync are Ada's), "sm90" or "sm100" (tensor descriptors), "cdna" (64 lanes),
        "rdna" (32 lanes), "xpu" or "interpreter".
    name: the device's own name: the key of its tuning cache.
    """

    family: str
    name: str


_ARCH: ContextVar[Arch | None] = ContextVar("convert_to_quant_arch", default=None)
_RECORD: ContextVar[list | None] = ContextVar("convert_to_quant_record", default=None)


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
        with _on(device):
            self.kernel[self.grid](**self.args, **self.keywords())


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


def recording() -> bool:
    """Whether launches are collected and not run."""
    return _RECORD.get() is not None


def arch_of(device: torch.device) -> Arch:
    """The family of `device`; Unsupported, with the reason, where the kernels do not run."""
    return _ARCH.get() or _arch_of(device)


@lru_cache(maxsize=32)
def _arch_of(device: torch.device) -> Arch:
    if device.type == "cpu":
        return Arch("interpreter", "interpreter")
    if device.type == "xpu":
        return Arch("xpu", torch.xpu.get_device_properties(device).name)
    if device.type != "cuda":
        raise Unsupported(f"no Triton back end for device type {device.type!r}")
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        cdna = str(getattr(properties, "gcnArchName", "gfx9")).startswith("gfx9")
        return Arch("cdna" if cdna else "rdna", properties.name)
    major, minor = properties.major, properties.minor
    if major < 8:
        raise Unsupported(f"sm_{major}{minor} has no int8 tensor-core product in Triton (sm_80 is the least)")
    family = {9: "sm90", 10: "sm100"}.get(major, "sm80")
    return Arch(family, properties.name)


def _on(device: torch.device):
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


def check_group(arch: Arch, rotation: int) -> None:
    """Unsupported for the one group that does not fit: 1024 spills 400 bytes and more on RDNA."""
    if arch.family == "rdna" and rotation == 1024:
        raise Unsupported("a rotation group of 1024 spills registers on RDNA")


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)
