"""What the node pack changes in a running ComfyUI, each change apart, reversible and guarded."""

from collections.abc import Callable
from typing import Any

from .stored import BLOCKWISE, EXTRAS, INT8, SMOOTH

_NEWER = "update ComfyUI to 0.29 or newer"


class MissingHook(Exception):
    """This ComfyUI has no place for a feature; the message says which and what to do."""


_undo: list[Callable[[], None]] = []


def install() -> dict[str, str | None]:
    """Apply every change that this ComfyUI has a place for; returns feature -> None, or why it is missing.

    Doing it twice changes nothing more.
    """
    return {
        f"loading {BLOCKWISE} and {SMOOTH}": _attempt(install_formats),
    }


def uninstall() -> None:
    """Take every change back."""
    while _undo:
        _undo.pop()()


def _attempt(change: Callable[[], None]) -> str | None:
    try:
        change()
    except MissingHook as e:
        return str(e)
    return None


def install_formats() -> None:
    """Add the formats to ComfyUI's table and teach its quantized layers to read and write them.

    MissingHook when ComfyUI, its table, its factory of operations or comfy-kitchen's layouts are not
    there or not of the known form; nothing is changed then.
    """
    if _undo:
        return
    try:
        import comfy.ops as ops
        import comfy.quant_ops as quant_ops
    except ImportError as e:
        raise MissingHook(f"not running inside ComfyUI ({e})") from e
    table = getattr(quant_ops, "QUANT_ALGOS", None)
    if not isinstance(table, dict) or INT8 not in table:
        raise MissingHook(f"comfy.quant_ops.QUANT_ALGOS has no {INT8}; {_NEWER}")
    factory = getattr(ops, "mixed_precision_ops", None)
    if not callable(factory):
        raise MissingHook(f"comfy.ops.mixed_precision_ops is not there; {_NEWER}")
    try:
        from comfy_kitchen.tensor import register_layout_class

        from . import kitchen_layouts, layers
    except ImportError as e:
        raise MissingHook(f"comfy-kitchen lacks what the layouts need ({e}); update comfy-kitchen") from e
    register_layout_class(kitchen_layouts.BLOCKWISE, kitchen_layouts.BlockWiseINT8Layout)
    register_layout_class(kitchen_layouts.EXTENDED, kitchen_layouts.ExtendedINT8Layout)
    _extend_table(table, {BLOCKWISE: kitchen_layouts.BLOCKWISE, SMOOTH: kitchen_layouts.EXTENDED})
    ops.mixed_precision_ops = extended_factory(factory, layers.EXTENDED)
    _undo.append(lambda: setattr(ops, "mixed_precision_ops", factory))


def _extend_table(table: dict, layouts: dict[str, str]) -> None:
    stock = dict(table[INT8])
    parameters = set(stock.get("parameters", ())) | set(EXTRAS)
    table[INT8] = {**stock, "parameters": parameters}
    _undo.append(lambda: table.__setitem__(INT8, stock))
    for name, layout in layouts.items():
        if name not in table:
            table[name] = {**stock, "parameters": parameters, "comfy_tensor_layout": layout}
            _undo.append(lambda name=name: table.pop(name))  # type: ignore[misc]


def extended_factory(
    factory: Callable[..., Any], extended: dict[str, Callable[[type], type]]
) -> Callable[..., Any]:
    """Return a mixed_precision_ops whose layers are extended, by class name, where ComfyUI has them."""

    def mixed_precision_ops(*args: Any, **kwargs: Any) -> Any:
        made = factory(*args, **kwargs)
        for name, extend in extended.items():
            # Only what this factory defines: elsewhere an Embedding is a plain one, of everybody.
            if name in vars(made):
                setattr(made, name, extend(getattr(made, name)))
        return made

    mixed_precision_ops.__wrapped__ = factory  # type: ignore[attr-defined]
    return mixed_precision_ops
