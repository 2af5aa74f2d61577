"""Handlers that let the layouts of checkpoint formats run torch ops without a float copy of the weight."""

from typing import Any

import torch
import torch.nn.functional as F

from .dispatch import dequantize_args, fall_back, register_layout_op
from .layouts import WeightLayout, weight_layout
from .tensor import QuantizedTensor

aten = torch.ops.aten


def _handles(op: Any) -> Any:
    return register_layout_op(op, WeightLayout)


def _layout(q: QuantizedTensor) -> type[WeightLayout]:
    return weight_layout(q._layout_type)


def _is_weight(value: Any, transposed: bool) -> bool:
    return isinstance(value, QuantizedTensor) and bool(value._layout_params.get("transposed")) == transposed


def _plain(value: Any) -> Any:
    return value.dequantize() if isinstance(value, QuantizedTensor) else value


def _product(x: torch.Tensor, weight: QuantizedTensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return x W^T + bias; differentiable in x, through the float weight, where a gradient is wanted."""
    smooth = weight._layout_params.get("pre_quant_scale")
    x = x if smooth is None else x * smooth.to(x.dtype)
    return _layout(weight).linear(x, weight._qdata, weight._layout_params, bias)


@_handles(aten.linear.default)
def _linear(func: Any, args: tuple, kwargs: dict) -> torch.Tensor:
    x, weight, bias = args[0], args[1], (args[2] if len(args) > 2 else kwargs.get("bias"))
    if not _is_weight(weight, transposed=False) or weight._qdata.dim() != 2:
        return F.linear(_plain(x), _plain(weight), _plain(bias))
    return _product(_plain(x), weight, _plain(bias))


@_handles(aten.mm.default)
def _mm(func: Any, args: tuple, kwargs: dict) -> torch.Tensor:
    a, b = args
    if not _is_weight(b, transposed=True):
        return torch.mm(_plain(a), _plain(b))
    return _product(_plain(a), b, None)


@_handles(aten.addmm.default)
def _addmm(func: Any, args: tuple, kwargs: dict) -> torch.Tensor:
    bias, a, b = (_plain(args[0]), _plain(args[1]), args[2])
    scaled = kwargs.get("alpha", 1) != 1 or kwargs.get("beta", 1) != 1
    if scaled or bias.dim() != 1 or not _is_weight(b, transposed=True):
        return torch.addmm(bias, a, _plain(b), **kwargs)
    return _product(a, b, bias)


@_handles(aten.t.default)
def _t(func: Any, args: tuple, kwargs: dict) -> Any:
    q = args[0]
    if q.dim() != 2:
        return _plain(q).t()
    return q.alias(transposed=not q._layout_params.get("transposed", False))


@_handles(aten.transpose.int)
@_handles(aten.permute.default)
def _swap(func: Any, args: tuple, kwargs: dict) -> Any:
    """Run ``.T`` and ``.mT`` of a matrix as ``t()``; a permutation that moves nothing is an alias."""
    q = args[0]
    axes = args[1] if func is aten.permute.default else _swapped(q.dim(), *args[1:3])
    axes = [a % q.dim() for a in axes] if q.dim() else []
    if axes == list(range(q.dim())):
        return q.alias()
    if axes == [1, 0]:
        return aten.t.default(q)
    return fall_back(func, args, kwargs, QuantizedTensor, q._layout_type)


def _swapped(dim: int, a: int, b: int) -> list[int]:
    axes = list(range(dim))
    axes[a], axes[b] = axes[b], axes[a]
    return axes


@_handles(aten.view.default)
def _view(func: Any, args: tuple, kwargs: dict) -> Any:
    """Run the views that a layout can make of its storage, and make floats of the others."""
    q, shape = args[0], torch.empty(args[0].shape, device="meta").view(args[1]).shape
    if shape == q.shape:
        return q.alias()
    made = None
    if not q._layout_params.get("transposed"):
        with torch.inference_mode(q.is_inference()):
            made = _layout(q).view(q._qdata, q._layout_params, tuple(shape))
    if made is None:
        return fall_back(func, args, kwargs, QuantizedTensor, q._layout_type)
    with torch.inference_mode(q.is_inference()):
        return QuantizedTensor(made[0], q._layout_type, made[1])


@_handles(aten.gelu.default)
def _gelu(func: Any, args: tuple, kwargs: dict) -> QuantizedTensor:
    return args[0].requantize(func(args[0].dequantize(), *args[1:], **kwargs))


@_handles(aten.add_.Tensor)
def _add_(func: Any, args: tuple, kwargs: dict) -> Any:
    """Merge a delta: dequantize, add in float32, quantize again the same way, in place."""
    q = args[0]
    if not isinstance(q, QuantizedTensor):
        return func(q, *dequantize_args(args[1:], QuantizedTensor), **kwargs)
    wide = torch.promote_types(q.dtype, torch.float32)
    other = args[1].dequantize(wide) if isinstance(args[1], QuantizedTensor) else args[1]
    return q.copy_(func(q.dequantize(wide), other, **kwargs))


@_handles(aten.embedding.default)
def _embedding(func: Any, args: tuple, kwargs: dict) -> torch.Tensor:
    """Look up rows without making all of them floats, where the layout can."""
    table, index = args[0], args[1]
    if _is_weight(table, transposed=False):
        rows = _layout(table).embedding(index, table._qdata, table._layout_params, table.dtype)
        if rows is not None:
            return rows
    return func(*dequantize_args(args, QuantizedTensor), **kwargs)
