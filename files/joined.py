"""A tensor put together from the rows of others, where it is read and nowhere else.

It is a list of the tensors whose rows it has: nothing is copied to make one.
"""

from collections.abc import Sequence
from dataclasses import replace

from ..formats.errors import CheckpointError
from .dtypes import nbytes
from .header import TensorInfo


def joined(name: str, parts: Sequence[TensorInfo], swap: bool = False) -> TensorInfo:
    """Return the tensor `name` whose rows are those of `parts`, one part below the other.

    swap: its second half of rows stands above the first. CheckpointError for parts of different dtypes or
    columns, for scalars that cannot stand below each other, and for an odd number of rows to swap.
    """
    if len(parts) == 1:
        return _swapped(replace(parts[0], name=name)) if swap else replace(parts[0], name=name)
    first = parts[0]
    kinds = {(p.dtype, len(p.shape), p.shape[1:]) for p in parts}
    if len(kinds) > 1 or not first.shape:
        shown = ", ".join(f"{p.name} {p.dtype} {list(p.shape)}" for p in parts)
        raise CheckpointError(f"{first.file}: {name} would be made of {shown}, which do not fit together")
    return _of(first, name, tuple(piece for p in parts for piece in p.pieces))


def _swapped(info: TensorInfo) -> TensorInfo:
    if not info.shape or info.shape[0] % 2 or info.parts or info.strided:
        raise CheckpointError(f"{info.file}: {info.name} {list(info.shape)} has no two halves to exchange")
    half = info.shape[0] // 2
    return _of(info, info.name, (_rows(info, half, half), _rows(info, 0, half)))


def _rows(info: TensorInfo, first: int, count: int) -> TensorInfo:
    """Return `count` rows of a tensor in one place, from row `first` on."""
    shape, skipped = (count, *info.shape[1:]), nbytes(info.dtype, (first, *info.shape[1:]))
    return replace(info, shape=shape, offset=info.offset + skipped, nbytes=nbytes(info.dtype, shape))


def _of(first: TensorInfo, name: str, parts: tuple[TensorInfo, ...]) -> TensorInfo:
    return TensorInfo(
        name,
        first.dtype,
        (sum(p.shape[0] for p in parts), *first.shape[1:]),
        parts[0].file,
        parts[0].offset,
        sum(p.nbytes for p in parts),
        parts=parts,
    )
