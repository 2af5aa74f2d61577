"""Ops that mean the same for every layout: copying, moving, casting, making empty."""

from typing import Any

import torch

from .dispatch import register_generic_util
from .tensor import QuantizedTensor

aten = torch.ops.aten


@register_generic_util(aten.detach.default)
@register_generic_util(aten.alias.default)
def _same(func: Any, args: tuple, kwargs: dict) -> QuantizedTensor:
    return args[0].alias(lambda a: func(a))


@register_generic_util(aten.clone.default)
def _clone(func: Any, args: tuple, kwargs: dict) -> QuantizedTensor:
    return args[0].map_inner(lambda a: a.clone())


@register_generic_util(aten._to_copy.default)
def _to_copy(func: Any, args: tuple, kwargs: dict) -> Any:
    """Move the storage for another device; note another float dtype, which `dequantize` then returns."""
    q = args[0]
    dtype = kwargs.get("dtype") or q.dtype
    if not dtype.is_floating_point:
        return func(q.dequantize(), **kwargs)
    device, non_blocking = kwargs.get("device"), kwargs.get("non_blocking", False)
    pin = kwargs.get("pin_memory")

    def move(a: torch.Tensor) -> torch.Tensor:
        out = a.to(device=device, non_blocking=non_blocking, copy=True) if device is not None else a.clone()
        return out.pin_memory() if pin else out

    return q.map_inner(move, orig_dtype=dtype)


@register_generic_util(aten.copy_.default)
def _copy_(func: Any, args: tuple, kwargs: dict) -> Any:
    target, source = args[0], args[1]
    if not isinstance(target, QuantizedTensor):
        return target.copy_(source.dequantize(), *args[2:], **kwargs)
    if source.shape != target.shape:
        source = source.dequantize() if isinstance(source, QuantizedTensor) else source
        source = source.expand(target.shape)
    if isinstance(source, QuantizedTensor) and _same_kind(target, source):
        pairs = [(target._qdata, source._qdata)]
        pairs += [(v, source._layout_params[k]) for k, v in _tensors(target).items()]
        for mine, theirs in pairs:
            mine.copy_(theirs.reshape(mine.shape), *args[2:], **kwargs)
        return target
    dense = source.dequantize() if isinstance(source, QuantizedTensor) else source
    transposed = target._layout_params.get("transposed", False)
    made = target.requantize((dense.t() if transposed else dense).to(target.device))
    target._qdata.copy_(made._qdata)
    for name, mine in _tensors(target).items():
        mine.copy_(made._layout_params[name].reshape(mine.shape))
    return target


def _tensors(q: QuantizedTensor) -> dict[str, torch.Tensor]:
    return {k: v for k, v in q._layout_params.items() if isinstance(v, torch.Tensor)}


def _same_kind(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    """Return whether layouts, storage shapes (one element is one element) and plain parameters agree."""

    def describe(q: QuantizedTensor) -> dict:
        shapes = {k: () if v.numel() == 1 else tuple(v.shape) for k, v in _tensors(q).items()}
        params = {**q._layout_params, **shapes}
        return {**params, "orig_dtype": None, "": (q._layout_type, q._qdata.shape, q._qdata.dtype)}

    return describe(a) == describe(b)


@register_generic_util(aten.empty_like.default)
def _empty_like(func: Any, args: tuple, kwargs: dict) -> Any:
    q, dtype = args[0], kwargs.get("dtype") or args[0].dtype
    if not dtype.is_floating_point:
        return func(q.dequantize(), **kwargs)
    device = kwargs.get("device")
    return q.map_inner(lambda a: torch.empty_like(a, device=device), orig_dtype=dtype)


@register_generic_util(aten.is_pinned.default)
def _is_pinned(func: Any, args: tuple, kwargs: dict) -> bool:
    return args[0]._qdata.is_pinned()


@register_generic_util(aten._pin_memory.default)
def _pin_memory(func: Any, args: tuple, kwargs: dict) -> QuantizedTensor:
    return args[0].map_inner(lambda a: a.pin_memory())


@register_generic_util(aten.record_stream.default)
def _record_stream(func: Any, args: tuple, kwargs: dict) -> None:
    for a in args[0].inner_tensors().values():
        a.record_stream(args[1])


@register_generic_util(aten.equal.default)
def _equal(func: Any, args: tuple, kwargs: dict) -> bool:
    """Equal layouts hold equal bytes; anything else is compared as floats."""
    a, b = args
    if isinstance(a, QuantizedTensor) and isinstance(b, QuantizedTensor) and _same_kind(a, b):
        mine, theirs = _tensors(a), _tensors(b)
        return torch.equal(_bits(a._qdata), _bits(b._qdata)) and all(
            torch.equal(_bits(v), _bits(theirs[k].reshape(v.shape))) for k, v in mine.items()
        )
    dense = [v.dequantize() if isinstance(v, QuantizedTensor) else v for v in (a, b)]
    return torch.equal(*dense)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return eight-bit floats as their bytes: torch cannot compare them."""
    small = tensor.is_floating_point() and tensor.element_size() == 1
    return tensor.view(torch.uint8) if small else tensor
