"""What the node pack changes in a running ComfyUI, each change apart, reversible and guarded."""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any

from .folded import folds_of, is_folded
from .folded_patches import folded_patches, is_marked, mark
from .stored import BLOCKWISE, EXTRAS, INT8, SMOOTH

_NEWER = "update ComfyUI to 0.29 or newer"
_OURS = "_of_convert_to_quant"
"""An attribute of what is put in the place of ComfyUI's own."""


class MissingHook(Exception):
    """This ComfyUI has no place for a feature; the message says which and what to do."""


_undo: list[Callable[[], None]] = []


def install() -> dict[str, str | None]:
    """Apply every change that this ComfyUI has a place for; returns feature -> None, or why it is missing.

    Doing it twice changes nothing more.
    """
    return {
        f"loading {BLOCKWISE} and {SMOOTH}": _attempt(install_formats),
        "folding LoRAs for folded files": _attempt(install_folding),
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
    if hasattr(factory, _OURS):
        return
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

    setattr(mixed_precision_ops, _OURS, True)
    mixed_precision_ops.__wrapped__ = factory  # type: ignore[attr-defined]
    return mixed_precision_ops


def install_folding() -> None:
    """Fold what nodes add to a model whose file is folded: ComfyUI's patches, those of its hooks too.

    MissingHook when ComfyUI, its patches or what reads its files are not there; nothing is changed then.
    """
    try:
        import comfy.model_patcher
        import comfy.sd
        import comfy.utils
    except ImportError as e:
        raise MissingHook(f"not running inside ComfyUI ({e})") from e
    patcher = getattr(comfy.model_patcher, "ModelPatcher", None)
    places: list[tuple[Any, str, Callable[[Any], Any]]] = [
        (patcher, "add_patches", _folding),
        (patcher, "add_hook_patches", _folding),
        (comfy.sd, "load_bypass_lora_for_models", _refusing),
        (comfy.utils, "load_torch_file", _marking),
    ]
    missing = [name for owner, name, _ in places if not callable(getattr(owner, name, None))]
    if missing:
        raise MissingHook(f"ComfyUI has no {' and no '.join(missing)}; {_NEWER}")
    for owner, name, change in places:
        stock = getattr(owner, name)
        if not hasattr(stock, _OURS):
            made = wraps(stock)(change(stock))
            setattr(made, _OURS, True)
            setattr(owner, name, made)
            _undo.append(lambda owner=owner, name=name, stock=stock: setattr(owner, name, stock))  # type: ignore[misc]


def _folding(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Make what folds a method's patches where the model is folded; it returns their keys as they came."""
    form = signature(stock)

    def add(self: Any, *args: Any, **kwargs: Any) -> Any:
        folds = folds_of(self)
        if folds is None:
            return stock(self, *args, **kwargs)
        given = form.bind(self, *args, **kwargs)
        made = folded_patches(folds, given.arguments["patches"])
        given.arguments["patches"] = {key: patch for key, (_, patch) in made.items()}
        added = set(stock(*given.args, **given.kwargs))
        return list({source for key, (source, _) in made.items() if key in added})

    return add


def _refusing(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Make what refuses a LoRA beside a folded model's weights, unless it was made for it."""

    def load_bypass_lora_for_models(model: Any, clip: Any, lora: Any, *args: Any, **kwargs: Any) -> Any:
        patchers = [model, getattr(clip, "patcher", None)]
        if any(p is not None and is_folded(p) for p in patchers) and not is_marked(lora):
            raise RuntimeError(
                "this model's file is folded, and a LoRA beside its weights (bypass) is not fitted to it: "
                "use the ordinary Load LoRA, or make one that fits: ctq edit MODEL --fold-lora LORA"
            )
        return stock(model, clip, lora, *args, **kwargs)

    return load_bypass_lora_for_models


def _marking(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Make what tells, of a LoRA file, whether it was made for a folded model."""
    form = signature(stock)

    def load_torch_file(*args: Any, **kwargs: Any) -> Any:
        given = form.bind(*args, **kwargs)
        wanted = given.arguments.get("return_metadata", False)
        given.arguments["return_metadata"] = True
        tensors, metadata = stock(*given.args, **given.kwargs)
        mark(tensors, metadata)
        return (tensors, metadata) if wanted else tensors

    return load_torch_file
