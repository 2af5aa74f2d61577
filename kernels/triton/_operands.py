"""Tensors as a launcher sees them: shape, strides, type and place, and no memory behind them.

A launcher (`_planned`) is given operands and returns a plan, a value that names what is to be done
with them. An operand offers what decides a plan (its shape, say) and new views of itself; any
operation of PyTorch on it is an error, so a launcher cannot do work that its plan does not hold.
"""

from math import prod
from typing import NoReturn, Union

import torch

_REFUSED = (
    "a launcher has no tensors, only operands: {!r} is not possible here. Work belongs into the plan "
    "that the launcher returns, as a Launch or a Call"
)


class Memory:
    """Contiguous memory that a plan takes: a result, or what passes from step to step.

    copy_of: the operand whose values it holds from the start; None for memory that a step writes.
    """

    __slots__ = ("copy_of", "device", "dtype", "shape")

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        copy_of: Union["Operand", None] = None,
    ):
        self.shape, self.dtype, self.device, self.copy_of = shape, dtype, device, copy_of

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * self.dtype.itemsize


class Operand:
    """A view of an argument (`source` is its position) or of a plan's memory (`source` is the Memory).

    Both begin at the same address. stride: None for row-major, worked out when it is asked for.
    aligned: the address is a multiple of 16. whole: the operand is its source as that was made, in
    the same shape.
    """

    __slots__ = ("_contiguous", "_stride", "aligned", "device", "dtype", "shape", "source", "whole")

    def __init__(
        self,
        source: int | Memory,
        shape: tuple[int, ...],
        stride: tuple[int, ...] | None,
        dtype: torch.dtype,
        device: torch.device,
        contiguous: bool = True,
        aligned: bool = True,
        whole: bool = False,
    ):
        self.source, self.shape, self._stride = source, shape, stride
        self.dtype, self.device = dtype, device
        self._contiguous, self.aligned, self.whole = contiguous, aligned, whole

    def __repr__(self) -> str:
        return f"Operand({self.source}, {self.shape}, {self.stride()}, {self.dtype})"

    # What decides a plan, under the names that tensors have.

    def stride(self, dim: int | None = None):
        """Return all strides, or that of one dimension, in elements."""
        strides = self._stride
        if strides is None:
            strides = self._stride = row_major(self.shape)
        return strides if dim is None else strides[dim]

    def dim(self) -> int:
        """Return the number of dimensions."""
        return len(self.shape)

    def numel(self) -> int:
        """Return the number of elements."""
        return prod(self.shape)

    def element_size(self) -> int:
        """Return the bytes of one element."""
        return self.dtype.itemsize

    def is_contiguous(self) -> bool:
        """Return whether the elements lie without gaps in row-major order."""
        return self._contiguous

    # Other operands: views where memory allows, else copies that the plan makes before its steps.

    def reshape(self, *shape: int) -> "Operand":
        """Return the same values in another shape; one size may be -1."""
        if shape == (-1,):
            shape = (prod(self.shape),)
        elif -1 in shape:
            known = -prod(shape)
            shape = tuple(self.numel() // known if n == -1 else n for n in shape)
        if shape == self.shape:
            return self
        if self._contiguous:
            return self._view(shape, None, True)
        meta = torch.empty_strided(self.shape, self.stride(), dtype=self.dtype, device="meta")
        try:
            view = meta.view(shape)
        except RuntimeError:  # these strides have no view of that shape
            return self.copy().reshape(*shape)
        return self._view(shape, view.stride(), view.is_contiguous())

    def contiguous(self) -> "Operand":
        """Return self where it is contiguous, else a copy that is."""
        return self if self._contiguous else self.copy()

    def float(self) -> "Operand":
        """Return self where it is float32, else a converted copy."""
        return self if self.dtype is torch.float32 else self.copy(dtype=torch.float32)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Operand":
        """Return self where it has that device and type, else a copy that has."""
        same = self.device == device and self.dtype == dtype
        return self if same else self.copy(device=device, dtype=dtype)

    def copy(self, dtype: torch.dtype | None = None, device: torch.device | None = None) -> "Operand":
        """Return a contiguous copy that is made before the first step: of arguments alone, as they come."""
        if isinstance(self.source, Memory) and self.source.copy_of is None:
            raise TypeError("memory that a step writes cannot be copied beforehand: copy it by a Call")
        return all_of(Memory(self.shape, dtype or self.dtype, device or self.device, self))

    def _view(self, shape, stride, contiguous: bool) -> "Operand":
        return Operand(self.source, shape, stride, self.dtype, self.device, contiguous, self.aligned)

    # Everything else that a tensor could do.

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(_REFUSED.format(name))

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None) -> NoReturn:
        raise TypeError(_REFUSED.format(getattr(function, "__name__", str(function))))


def argument(position: int, tensor: torch.Tensor) -> Operand:
    """Return the operand for `tensor`, the argument at `position` of a call."""
    contiguous, aligned = tensor.is_contiguous(), tensor.data_ptr() % 16 == 0
    shape, stride = tuple(tensor.shape), None if contiguous else tensor.stride()
    return Operand(position, shape, stride, tensor.dtype, tensor.device, contiguous, aligned, True)


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Operand:
    """Return unwritten contiguous memory: for a result, or for what passes from step to step."""
    return Operand(Memory(shape, dtype, device), shape, None, dtype, device, True, True, True)


def all_of(memory: Memory) -> Operand:
    """Return the operand that is all of `memory`."""
    return Operand(memory, memory.shape, None, memory.dtype, memory.device, True, True, True)


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of contiguous memory, as PyTorch counts them: an empty axis as one of 1."""
    if len(shape) == 2:
        return (shape[1] or 1, 1)
    strides, step = [1] * len(shape), 1
    for i in range(len(shape) - 1, 0, -1):
        step *= max(shape[i], 1)
        strides[i - 1] = step
    return tuple(strides)


def rows_of(x: Operand) -> Operand:
    """Return x [.., K] as [M, K] with contiguous columns: a view where strides allow, else a copy.

    Only activations and one-time inputs come here; weights of a linear are never copied.
    """
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def aligned(x: Operand) -> bool:
    """Return whether rows x [.., K] can be read 16 bytes at a time: columns contiguous, rows on 16 bytes."""
    return x.stride(-1) == 1 and x.stride(-2) * x.element_size() % 16 == 0 and x.aligned


class Tensors:
    """The tensors that operands stand for in one call."""

    def source(self, operand: Operand) -> torch.Tensor:
        """Return the argument or the memory that `operand` is a view of: it begins at the same address."""
        raise NotImplementedError

    def tensor(self, operand: Operand) -> torch.Tensor:
        """Return the tensor that `operand` is."""
        base = self.source(operand)
        if operand.whole:
            return base
        return base.as_strided(operand.shape, operand.stride(), base.storage_offset())
