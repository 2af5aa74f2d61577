"""Which code runs for a torch op on a QuantizedTensor: the layout-op registry."""

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

from .layouts.base import LAYOUTS, QuantizedLayout

logger = logging.getLogger(__name__)

Handler = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]

_LAYOUT_OPS: dict[tuple[Any, str], Handler] = {}
_GENERIC_OPS: dict[Any, Handler] = {}
_FOUND: dict[tuple[Any, Any], Handler | None] = {}
"""What `find_handler` has found; emptied when a handler is added."""
_REPORTED: set[tuple[str, str]] = set()


def register_layout_op(op: Any, layout: str | type[QuantizedLayout]) -> Callable[[Handler], Handler]:
    """Return a decorator: its ``handler(func, args, kwargs)`` runs for `op` on tensors of `layout`.

    op: an ``OpOverload`` (``torch.ops.aten.linear.default``) or a packet (all its overloads).
    layout: a QuantizedLayout subclass or its name; it need not be defined yet. A later registration
        replaces an earlier one. Layouts derived from it inherit the handler.
    """
    return _registrar(op, lambda o, handler: _LAYOUT_OPS.__setitem__((o, _name(layout)), handler))


def register_generic_util(op: Any) -> Callable[[Handler], Handler]:
    """Return a decorator: its handler runs for `op` on tensors of every layout that has none of its own."""
    return _registrar(op, _GENERIC_OPS.__setitem__)


def _registrar(op: Any, store: Callable[[Any, Handler], None]) -> Callable[[Handler], Handler]:
    overloads = (
        [getattr(op, n) for n in op.overloads()] if isinstance(op, torch._ops.OpOverloadPacket) else [op]
    )

    def register(handler: Handler) -> Handler:
        for overload in overloads:
            store(overload, handler)
        _FOUND.clear()
        return handler

    return register


def _name(layout: str | type[QuantizedLayout]) -> str:
    return layout if isinstance(layout, str) else layout.__name__


def find_handler(func: Any, layout: str) -> Handler | None:
    """Return the handler of `func` for `layout` or its nearest base, else the generic one, else None."""
    cls = LAYOUTS.get(layout)
    key = (func, cls or layout)
    if key not in _FOUND:
        bases = [layout] if cls is None else [b.__name__ for b in cls.__mro__]
        own = next((h for b in bases if (h := _LAYOUT_OPS.get((func, b)))), None)
        _FOUND[key] = own or _GENERIC_OPS.get(func)
    return _FOUND[key]


def dispatch(func: Any, args: tuple, kwargs: dict, quantized: Any) -> Any:
    """Run `func` on arguments that hold at least one QuantizedTensor."""
    layout = first_quantized(args, kwargs, quantized)._layout_type
    handler = find_handler(func, layout)
    if handler is not None:
        return handler(func, args, kwargs)
    # Under inference_mode composite ops (matmul, .T) arrive whole; their parts may have handlers.
    parts = func.decompose(*args, **kwargs)
    return fall_back(func, args, kwargs, quantized, layout) if parts is NotImplemented else parts


def first_quantized(args: tuple, kwargs: dict, quantized: Any) -> Any:
    """Return the first QuantizedTensor among the arguments: its layout decides."""
    for a in args:
        if isinstance(a, quantized):
            return a
    leaves = tree_flatten((args, kwargs))[0]
    return next(a for a in leaves if isinstance(a, quantized))


def dequantize_args(tree: Any, quantized: Any) -> Any:
    """Return `tree` with every QuantizedTensor replaced by its float tensor."""
    return tree_map(lambda a: a.dequantize() if isinstance(a, quantized) else a, tree)


def fall_back(func: Any, args: tuple, kwargs: dict, quantized: Any, layout: str) -> Any:
    """Run `func` on dequantized arguments; what it changed in place is quantized again.

    Said once for each (op, layout) in the log: a silent fallback hides lost speed.
    """
    if (str(func), layout) not in _REPORTED:
        _REPORTED.add((str(func), layout))
        logger.warning("%s has no handler for %s: dequantizing (said once)", func, layout)
    flat, dense = {}, {}

    def open_up(a: Any) -> Any:
        if not isinstance(a, quantized):
            return a
        if id(a) not in dense:
            flat[id(a)], dense[id(a)] = a, a.dequantize()
        return dense[id(a)]

    with _mode_of_views(func, first_quantized(args, kwargs, quantized)):
        out = func(*tree_map(open_up, args), **tree_map(open_up, kwargs))
    if not func._schema.is_mutable:
        return out
    changed = _mutated(func, args, kwargs, quantized)
    for q in changed:
        q.copy_(dense[id(q)])
    back = {id(dense[key]): q for key, q in flat.items()}
    return tree_map(lambda a: back.get(id(a), a), out)


def _mode_of_views(func: Any, q: Any) -> Any:
    """Return a mode for `func`: autograd wants views to be inference tensors exactly where the base is."""
    is_view = not func._schema.is_mutable and any(r.alias_info is not None for r in func._schema.returns)
    return torch.inference_mode(q.is_inference()) if is_view else contextlib.nullcontext()


def _mutated(func: Any, args: tuple, kwargs: dict, quantized: Any) -> list:
    """Return the QuantizedTensors that `func`'s schema says it writes."""
    found = []
    for i, arg in enumerate(func._schema.arguments):
        value = args[i] if i < len(args) else kwargs.get(arg.name)
        if arg.alias_info is not None and arg.alias_info.is_write:
            found += [a for a in tree_flatten(value)[0] if isinstance(a, quantized)]
    return found
