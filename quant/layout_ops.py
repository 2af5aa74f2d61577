"""Handlers that let the INT8 layouts run torch ops without a float copy of the weight."""

from typing import Any

import torch
import torch.nn.functional as F

from .. import kernels
from .dispatch import dequantize_args, fall_back, register_layout_op
from .int8_layouts import AxisWiseINT8Layout, BlockWiseINT8Layout, TensorWiseINT8Layout
from .tensor import QuantizedTensor

aten = torch.ops.aten
ops = torch.ops.convert_to_quant
INT8_LAYOUTS = (TensorWiseINT8Layout, AxisWiseINT8Layout, BlockWiseINT8Layout)


def _for_int8(op: Any):
    def register(handler):
        for layout in INT8_LAYOUTS:
            register_layout_op(op, layout)(handler)
        return handler

    return register


def weight_scale(q: QuantizedTensor) -> torch.Tensor:
    """The scale as the kernels take it: [], [N, 1] or one a block."""
    scale = q._layout_params["scale"]
    return scale.unsqueeze(-1) if q._layout_type == "AxisWiseINT8Layout" else scale


def _is_weight(value: Any, transposed: bool) -> bool:
    return isinstance(value, QuantizedTensor) and bool(value._layout_params.get("transposed")) == transposed


def _plain(value: Any) -> Any:
    return value.dequantize() if isinstance(value, QuantizedTensor) else value


def _product(x: torch.Tensor, weight: QuantizedTensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x W^T + bias; differentiable in x, through the dequantized weight, where a gradient is wanted."""
    params = weight._layout_params
    rotation, smooth = params.get("rotation", 0), params.get("pre_quant_scale")
    if smooth is not None:
        x = x * smooth.to(x.dtype)
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        dense = kernels.dequantize(weight._qdata, weight_scale(weight), x.dtype, rotation)
        return F.linear(x, dense, None if bias is None else bias.to(x.dtype))
    return ops.int8_linear(x, weight._qdata, weight_scale(weight), bias, rotation, params.get("input_scale"))


@_for_int8(aten.linear.default)
def _linear(func: Any, args: tuple, kwargs: dict) -> torch.Tensor:
    x, weight, bias = args[0], args[1], (args[2] if len(args) > 2 else kwargs.get("bias"))
    if not _is_weight(weight, transposed=False) or weight._qdata.dim() != 2:
        return F.linear(_plain(x), _plain(weight), _plain(bias))
    return _product(_plain(x), weight, _plain(bias))


@_for_int8(aten.mm.default)
def _mm(func: Any, args: tuple, kwargs: dict) -> torch.Tensor:
    a, b = args
    if not _is_weight(b, transposed=True):
        return torch.mm(_plain(a), _plain(b))
    return _product(_plain(a), b, None)


@_for_int8(aten.addmm.default)
def _addmm(func: Any, args: tuple, kwargs: dict) -> torch.Tensor:
    bias, a, b = (_plain(args[0]), _plain(args[1]), args[2])
    scaled = kwargs.get("alpha", 1) != 1 or kwargs.get("beta", 1) != 1
    if scaled or bias.dim() != 1 or not _is_weight(b, transposed=True):
        return torch.addmm(bias, a, _plain(b), **kwargs)
    return _product(a, b, bias)


@_for_int8(aten.t.default)
def _t(func: Any, args: tuple, kwargs: dict) -> Any:
    q = args[0]
    if q.dim() != 2:
        return _plain(q).t()
    return q.alias(transposed=not q._layout_params.get("transposed", False))


@_for_int8(aten.transpose.int)
@_for_int8(aten.permute.default)
def _swap(func: Any, args: tuple, kwargs: dict) -> Any:
    """``.T`` and ``.mT`` of a matrix are ``t()``; a permutation that moves nothing is an alias."""
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


@_for_int8(aten.view.default)
def _view(func: Any, args: tuple, kwargs: dict) -> Any:
    """Views that keep the last axis keep rows, hence row scales and rotation groups."""
    q, shape = args[0], torch.empty(args[0].shape, device="meta").view(args[1]).shape
    if shape == q.shape:
        return q.alias()
    scale, params = q._layout_params["scale"], q._layout_params
    keeps_rows = shape[-1:] == q.shape[-1:] and q._layout_type == "TensorWiseINT8Layout"
    free = scale.numel() == 1 and not params.get("rotation") and "pre_quant_scale" not in params
    if params.get("transposed") or not (free or keeps_rows):
        return fall_back(func, args, kwargs, QuantizedTensor, q._layout_type)
    rows = scale if scale.numel() == 1 else scale.view(*shape[:-1], 1)
    with torch.inference_mode(q.is_inference()):
        return QuantizedTensor(q._qdata.view(shape), q._layout_type, {**params, "scale": rows})


@_for_int8(aten.gelu.default)
def _gelu(func: Any, args: tuple, kwargs: dict) -> QuantizedTensor:
    return args[0].requantize(func(args[0].dequantize(), *args[1:], **kwargs))


@_for_int8(aten.add_.Tensor)
def _add_(func: Any, args: tuple, kwargs: dict) -> Any:
    """Merge a delta: dequantize, add in float32, quantize again the same way, in place."""
    q = args[0]
    if not isinstance(q, QuantizedTensor):
        return func(q, *dequantize_args(args[1:], QuantizedTensor), **kwargs)
    wide = torch.promote_types(q.dtype, torch.float32)
    other = args[1].dequantize(wide) if isinstance(args[1], QuantizedTensor) else args[1]
    return q.copy_(func(q.dequantize(wide), other, **kwargs))


@_for_int8(aten.embedding.default)
def _embedding(func: Any, args: tuple, kwargs: dict) -> torch.Tensor:
    """Look up rows of integers and dequantize only those: a row scale and a rotation belong to a row."""
    table, index = args[0], args[1]
    if not _is_weight(table, transposed=False):
        return func(*dequantize_args(args, QuantizedTensor), **kwargs)
    scale = weight_scale(table)
    if scale.numel() != 1 and scale.shape[1] != 1:
        return func(table.dequantize(), *args[1:], **kwargs)
    params = table._layout_params
    rows = func(table._qdata, index)
    scales = scale if scale.numel() == 1 else scale[index]
    out = kernels.dequantize(rows, scales, table.dtype, params.get("rotation", 0))
    smooth = params.get("pre_quant_scale")
    return out if smooth is None else out.mul_(smooth.to(out.dtype))
