"""What the node pack changes in a running ComfyUI, each change apart, reversible and guarded."""

import json
from collections.abc import Callable
from typing import Any

import torch

INT8, BLOCKWISE = "int8_tensorwise", "int8_blockwise"
EXTRAS = ("pre_quant_scale", "input_scale")
_NEWER = "update ComfyUI to 0.29 or newer"


class MissingHook(Exception):
    """This ComfyUI has no place for a feature; the message says which and what to do."""


_undo: list[Callable[[], None]] = []


def install() -> dict[str, str | None]:
    """Apply every change that this ComfyUI has a place for; returns feature -> None, or why it is missing.

    Doing it twice changes nothing more.
    """
    return {
        "loading int8_blockwise and pre_quant_scale": _attempt(install_formats),
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
    """Add the formats to ComfyUI's table and teach its quantized Linear to read and write them.

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

        from . import kitchen_layouts
    except ImportError as e:
        raise MissingHook(f"comfy-kitchen lacks what the layouts need ({e}); update comfy-kitchen") from e
    register_layout_class(kitchen_layouts.BLOCKWISE, kitchen_layouts.BlockWiseINT8Layout)
    register_layout_class(kitchen_layouts.EXTENDED, kitchen_layouts.ExtendedINT8Layout)
    _extend_table(table, kitchen_layouts.BLOCKWISE)
    ops.mixed_precision_ops = extended_factory(factory)
    _undo.append(lambda: setattr(ops, "mixed_precision_ops", factory))


def _extend_table(table: dict, layout: str) -> None:
    stock = dict(table[INT8])
    parameters = set(stock.get("parameters", ())) | set(EXTRAS)
    table[INT8] = {**stock, "parameters": parameters}
    _undo.append(lambda: table.__setitem__(INT8, stock))
    if BLOCKWISE not in table:
        entry = {**stock, "parameters": parameters, "comfy_tensor_layout": layout, "group_size": 128}
        table[BLOCKWISE] = entry
        _undo.append(lambda: table.pop(BLOCKWISE))


def extended_factory(factory: Callable[..., Any]) -> Callable[..., Any]:
    """Return a mixed_precision_ops whose Linear also reads int8_blockwise and pre_quant_scale.

    ComfyUI's own Linear does the loading: it is shown an int8_tensorwise layer, and the weight that it
    makes gets the right layout afterwards. So its placement, casting and patching stay in use.
    """

    def mixed_precision_ops(*args: Any, **kwargs: Any) -> Any:
        made = factory(*args, **kwargs)
        made.Linear = extended_linear(made.Linear)
        return made

    mixed_precision_ops.__wrapped__ = factory  # type: ignore[attr-defined]
    return mixed_precision_ops


def extended_linear(stock: type) -> type:
    """Make the subclass of ComfyUI's quantized Linear that loads and saves the added formats."""

    class Linear(stock):  # type: ignore[misc, valid-type]
        def _load_from_state_dict(self, state: dict, prefix: str, *args: Any) -> None:
            conf = _read(state.get(f"{prefix}comfy_quant"))
            if conf is None or conf.get("format") not in (INT8, BLOCKWISE):
                super()._load_from_state_dict(state, prefix, *args)
                return
            smooth = state.pop(f"{prefix}pre_quant_scale", None)
            static = state.pop(f"{prefix}input_scale", None)
            if conf["format"] == BLOCKWISE:
                state[f"{prefix}comfy_quant"] = _write({**conf, "format": INT8})
            super()._load_from_state_dict(state, prefix, *args)
            if conf["format"] == BLOCKWISE or smooth is not None or static is not None:
                _relabel(self, conf, smooth, static)

        def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", **kwargs: Any) -> Any:
            sd = super().state_dict(*args, destination=destination, prefix=prefix, **kwargs)
            params: Any = getattr(getattr(self, "weight", None), "_params", None)
            for leaf in EXTRAS:
                if getattr(params, leaf, None) is not None:
                    sd[prefix + leaf] = getattr(params, leaf)
            if getattr(self, "quant_format", None) == BLOCKWISE:
                conf = _read(sd[f"{prefix}comfy_quant"])
                sd[f"{prefix}comfy_quant"] = _write({**conf, "group_size": params.block_size})
            return sd

    Linear.__qualname__ = getattr(stock, "__qualname__", "Linear")
    return Linear


def _relabel(module: Any, conf: dict, smooth: torch.Tensor | None, static: torch.Tensor | None) -> None:
    """Give the weight that ComfyUI has just made its own layout."""
    from comfy_kitchen.tensor import QuantizedTensor

    from . import kitchen_layouts as layouts

    weight = module.weight
    stock = weight._params
    smooth = _on(smooth, weight, (-1,))
    static = _on(static, weight, ())
    if conf["format"] == BLOCKWISE:
        inner: Any = conf.get("params") if isinstance(conf.get("params"), dict) else {}
        block = int(conf.get("group_size", inner.get("group_size", 128)))
        params: Any = layouts.BlockWiseINT8Layout.Params(
            stock.scale.float(), stock.orig_dtype, stock.orig_shape, block, smooth
        )
        _check_blocks(weight._qdata, params)
        name, module.quant_format = layouts.BLOCKWISE, BLOCKWISE
    else:
        params, name = layouts.extend_params(stock, smooth, static), layouts.EXTENDED
    module.layout_type = name
    module.weight = torch.nn.Parameter(QuantizedTensor(weight._qdata, name, params), requires_grad=False)


def _on(scale: torch.Tensor | None, weight: Any, shape: tuple) -> torch.Tensor | None:
    """Return a scale in float32, on the device of the weight's integers."""
    if scale is None:
        return None
    return scale.to(device=weight._qdata.device, dtype=torch.float32).reshape(shape)


def _check_blocks(qdata: torch.Tensor, params: Any) -> None:
    want = tuple(-(-n // params.block_size) for n in qdata.shape)
    if tuple(params.scale.shape) != want:
        raise ValueError(
            f"int8_blockwise weight {list(qdata.shape)} in blocks of {params.block_size} needs a "
            f"weight_scale of {list(want)}, the checkpoint has {list(params.scale.shape)}"
        )


def _read(raw: torch.Tensor | None) -> Any:
    if raw is None:
        return None
    try:
        conf = json.loads(bytes(raw.cpu().numpy().tobytes()))
    except ValueError:
        return None  # ComfyUI's own loader says what is wrong
    return conf if isinstance(conf, dict) else None


def _write(conf: dict) -> torch.Tensor:
    return torch.tensor(list(json.dumps(conf).encode("utf-8")), dtype=torch.uint8)
