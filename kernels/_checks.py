"""Argument checks shared by the ops. Each says which condition failed, and on what."""

from typing import Protocol

import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class Described(Protocol):
    """What a check looks at: a tensor, or a launcher's operand (`triton._operands`), which has no values."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def dim(self) -> int: ...

    def numel(self) -> int: ...


def floating(name: str, x: Described) -> None:
    """Refuse anything but float32, float16 and bfloat16."""
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32, float16 or bfloat16, not {x.dtype}")


def int8(name: str, x: Described) -> None:
    """Refuse anything but int8."""
    if x.dtype != torch.int8:
        raise TypeError(f"{name} must be int8, not {x.dtype}")


def has_rows(name: str, x: Described) -> None:
    """Refuse a tensor without a last axis, or with an empty one."""
    if x.dim() < 1 or x.shape[-1] == 0:
        raise ValueError(
            f"{name} must have a last axis with at least one element, not shape {tuple(x.shape)}"
        )


def matrix(name: str, x: Described) -> None:
    """Refuse a tensor that is not 2-D."""
    if x.dim() != 2:
        raise ValueError(f"{name} must be 2-D, not of shape {tuple(x.shape)}")


def power_of_two(name: str, value: int) -> None:
    """Refuse a block edge that is not a power of two.

    Block edges are powers of two so that the shapes of the integers and of the scale say
    what they are: the contract stores no block size beside the scale.
    """
    if value < 1 or value & (value - 1):
        raise ValueError(f"{name} must be a power of two, not {value}")


def linear_weight(x: Described, qweight: Described, bias: Described | None, halves: int = 1) -> None:
    """Refuse operands that no linear layer can have: x [.., halves * K], qweight int8 [N, K], bias [N]."""
    int8("qweight", qweight)
    matrix("qweight", qweight)
    has_rows("x", x)
    if x.shape[-1] != halves * qweight.shape[1]:
        twice = ", and a gated activation takes twice as many" if halves == 2 else ""
        raise ValueError(
            f"in_features differ: x has {x.shape[-1]} columns, qweight has {qweight.shape[1]} "
            f"(shape {tuple(qweight.shape)}){twice}"
        )
    if bias is not None and bias.shape != (qweight.shape[0],):
        raise ValueError(f"bias must have shape ({qweight.shape[0]},), not {tuple(bias.shape)}")
