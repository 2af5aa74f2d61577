"""One kernel launch as a value: it can be run, kept and run again, or compiled without being run."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ._operands import Operand, Tensors

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # Triton before 3.4
    TensorDescriptor = None


class Descriptor(NamedTuple):
    """A kernel argument that reads `base` by tensor descriptor, a box of `block_shape` at a time.

    layout: how a box lies in shared memory, for a kernel in Gluon; None for Triton's, which finds it out.
    """

    base: Operand
    block_shape: list[int]
    layout: Any = None

    def of(self, tensor: torch.Tensor) -> Any:
        """Return Triton's or Gluon's TensorDescriptor of the tensor that `base` stands for."""
        if self.layout is None:
            return TensorDescriptor.from_tensor(tensor, self.block_shape)
        from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor

        return GluonDescriptor.from_tensor(tensor, self.block_shape, self.layout)


@dataclass(slots=True)
class Launch:
    """One kernel launch. `args` holds every kernel parameter by name, compile-time ones too.

    Where a kernel takes a tensor, `args` has an Operand or a Descriptor of one.
    """

    kernel: Any
    grid: tuple[int, ...]
    args: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    options: dict[str, Any] | None = None

    def keywords(self) -> dict[str, Any]:
        """Return compiler options. No fused multiply-add: it rounds once where the twin rounds twice."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": False,
            **(self.options or {}),
        }

    def operands(self) -> Iterator[Operand]:
        """Yield the operands that the kernel reads or writes."""
        for value in self.args.values():
            if isinstance(value, (Operand, Descriptor)):
                yield value if isinstance(value, Operand) else value.base

    @property
    def device(self) -> torch.device:
        """The device of the operands."""
        return next(self.operands()).device

    def run(self, tensors: Tensors) -> Any:
        """Launch on the operands' device, on its current stream. A pointer needs no tensor of its own shape.

        Returns what Triton compiled, which holds for every launch of this value; None under the interpreter.
        """
        args, values = self.args, []
        for name in self.kernel.arg_names:  # by position: names would be matched anew at every hand-over
            value = args[name]
            kind = type(value)
            if kind is Operand:
                device = value.device
                value = tensors.source(value)
            elif kind is Descriptor:
                value = value.of(tensors.tensor(value.base))
            values.append(value)
        with on(device):
            return self.kernel[self.grid](*values, **self.keywords())


_HERE = contextlib.nullcontext()


def on(device: torch.device):
    """Make `device` current for a launch; nothing to do for the interpreter's CPU tensors."""
    if device.type == "cpu" or device.index is None:
        return _HERE
    return torch.get_device_module(device).device(device)


def cdiv(a: int, b: int) -> int:
    """Return a / b rounded up."""
    return -(-a // b)


def power_of_2(n: int) -> int:
    """Return the least power of two that is n or more. Triton's own first wraps its argument."""
    return 1 << (n - 1).bit_length()
