"""The family of a device: which tables and switches of the kernels are its own."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from functools import lru_cache
from typing import NamedTuple

import torch

from .._library import Unsupported
from . import _probe


class Arch(NamedTuple):
    """What a launcher needs to know of a device.

    family: "sm80" or "sm89" (pointer kernels; the latter is consumer Ampere, Ada and consumer
        Blackwell, with 99 KiB of shared memory and mma.sync at half the rate per SM), "sm90" or
        "sm100" (tensor descriptors), "cdna" (64 lanes), "rdna" (32 lanes), "xpu" or "interpreter".
    name: the device's own name: the key of its tuning cache.
    int8: whether its int8 product is worth having. Blackwell Ultra (sm_103) has cut it.
    """

    family: str
    name: str
    int8: bool = True


_ARCH: ContextVar[Arch | None] = ContextVar("convert_to_quant_arch", default=None)


def arch_of(device: torch.device) -> Arch:
    """Return the family of `device`; Unsupported, with the reason, where the kernels do not run."""
    assumed = _ARCH.get()
    if assumed is not None:
        return assumed
    arch = _arch_of(device)
    if arch.family != "interpreter":
        _probe.check(device)
    return arch


@contextlib.contextmanager
def assume(arch: Arch) -> Iterator[None]:
    """Take every device for `arch` inside the block: to plan for a GPU that is not here."""
    token = _ARCH.set(arch)
    try:
        yield
    finally:
        _ARCH.reset(token)


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
    family = "sm80" if (major, minor) == (8, 0) else {9: "sm90", 10: "sm100"}.get(major, "sm89")
    return Arch(family, properties.name, int8=(major, minor) != (10, 3))


def check_group(arch: Arch, rotation: int) -> None:
    """Unsupported for the one group that does not fit: 1024 spills 400 bytes and more on RDNA."""
    if arch.family == "rdna" and rotation == 1024:
        raise Unsupported("a rotation group of 1024 spills registers on RDNA")


def mma_fragments(device: torch.device) -> bool:
    """Return whether threads hold a product's operands as mma.sync of NVIDIA has them: MMA in kernels."""
    family = arch_of(device).family
    return family.startswith("sm") or family == "interpreter"
