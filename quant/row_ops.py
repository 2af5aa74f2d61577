"""Ops that take weights apart by rows, or put them below each other, without touching a code.

Loaders and fusers of other programs call chunk, split, cat and slices on what they take for floats. Rows keep
their codes and scales; what cannot be split so (rows that share a scale, another axis) becomes floats.
"""

from collections.abc import Sequence
from typing import Any

import torch

from .dispatch import fall_back, register_layout_op
from .layouts import WeightLayout, weight_layout
from .tensor import QuantizedTensor

aten = torch.ops.aten


def _handles(op: Any) -> Any:
    return register_layout_op(op, WeightLayout)


@_handles(aten.slice.Tensor)
def _slice(func: Any, args: tuple, kwargs: dict) -> Any:
    given = (*args, *(0, None, None, 1)[len(args) - 1 :])
    q, dim, start, end, step = given[0], given[1], given[2], given[3], given[4]
    first, last, _ = slice(start, end).indices(q.shape[0])
    if step == 1 and (first, last) == (0, q.shape[0]) and dim in (0, -q.dim()):
        return q.alias()
    parts = _parts(q, [(first, last)], dim) if step == 1 else None
    return fall_back(func, args, kwargs, QuantizedTensor, q._layout_type) if parts is None else parts[0]


@_handles(aten.split.Tensor)
def _split(func: Any, args: tuple, kwargs: dict) -> Any:
    q, size, rows = args[0], args[1], args[0].shape[0]
    bounds = [(i, min(i + size, rows)) for i in range(0, rows, max(size, 1))]
    parts = _parts(q, bounds, args[2] if len(args) > 2 else kwargs.get("dim", 0))
    return fall_back(func, args, kwargs, QuantizedTensor, q._layout_type) if parts is None else parts


@_handles(aten.split_with_sizes.default)
def _split_with_sizes(func: Any, args: tuple, kwargs: dict) -> Any:
    q, sizes = args[0], args[1]
    bounds: list[tuple[int, int]] = []
    for size in sizes:
        start = bounds[-1][1] if bounds else 0
        bounds.append((start, start + size))
    whole = bool(bounds) and bounds[-1][1] == q.shape[0]
    parts = _parts(q, bounds, args[2] if len(args) > 2 else kwargs.get("dim", 0)) if whole else None
    return fall_back(func, args, kwargs, QuantizedTensor, q._layout_type) if parts is None else parts


@_handles(aten.cat.default)
def _cat(func: Any, args: tuple, kwargs: dict) -> Any:
    tensors, dim = args[0], args[1] if len(args) > 1 else kwargs.get("dim", 0)
    joined = _joined(tensors) if dim in (0, -2) else None
    if joined is not None:
        return joined
    first = next(t for t in tensors if isinstance(t, QuantizedTensor))
    return fall_back(func, args, kwargs, QuantizedTensor, first._layout_type)


def _matrix(tensor: Any) -> bool:
    return (
        isinstance(tensor, QuantizedTensor)
        and tensor.dim() == 2
        and not tensor._layout_params.get("transposed", False)
    )


def _parts(q: QuantizedTensor, bounds: Sequence[tuple[int, int]], dim: int) -> list[Any] | None:
    """Return rows [start, stop) for each of `bounds`; None where only floats can be taken apart so."""
    if dim not in (0, -2) or not _matrix(q) or any(start >= stop for start, stop in bounds):
        return None
    layout = weight_layout(q._layout_type)
    kind = layout.form(q._layout_params).layout
    with torch.inference_mode(q.is_inference()):
        try:
            made = [layout.take_rows(q._qdata, q._layout_params, *bound) for bound in bounds]
        except ValueError:
            return None
        return [QuantizedTensor.of(part, kind) for part in made]


def _joined(tensors: Sequence[Any]) -> QuantizedTensor | None:
    """Return the tensors below each other; None unless all are quantized, and alike."""
    if not all(_matrix(t) for t in tensors):
        return None
    kinds = {(t._layout_type, t.shape[1], t.device, t.dtype) for t in tensors}
    if len(kinds) > 1:
        return None
    layout = weight_layout(tensors[0]._layout_type)
    try:
        made = layout.join_rows([(t._qdata, t._layout_params) for t in tensors])
    except ValueError:
        return None
    return QuantizedTensor.of(made, layout.form(tensors[0]._layout_params).layout)
