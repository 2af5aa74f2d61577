"""Layers of the added formats in a state dict: shown to ComfyUI as ``int8_tensorwise``, and written back."""

import json
from dataclasses import dataclass
from typing import Any

import torch

INT8, BLOCKWISE, SMOOTH = "int8_tensorwise", "int8_blockwise", "int8_smooth"
EXTRAS = ("pre_quant_scale", "input_scale")


@dataclass(frozen=True)
class Added:
    """What ComfyUI does not read of a layer: its ``comfy_quant``, and the activation scales."""

    config: dict[str, Any]
    smooth: torch.Tensor | None
    static: torch.Tensor | None

    @property
    def block(self) -> int:
        """Return the edge of a block; 0 for rows."""
        if self.config["format"] != BLOCKWISE:
            return 0
        inner: Any = self.config.get("params")
        inner = inner if isinstance(inner, dict) else {}
        return int(self.config.get("group_size", inner.get("group_size", 128)))


def taken(state: dict, prefix: str) -> Added | None:
    """Take out of a state dict what ComfyUI does not read, and call the rest ``int8_tensorwise``.

    None, and nothing is changed, for a layer that is ComfyUI's own.
    """
    conf = read(state.get(f"{prefix}comfy_quant"))
    if conf is None or conf.get("format") not in (INT8, BLOCKWISE, SMOOTH):
        return None
    if conf["format"] == SMOOTH and f"{prefix}pre_quant_scale" not in state:
        raise ValueError(f"{prefix}pre_quant_scale is missing: {SMOOTH} layers have one")
    added = Added(conf, *(state.pop(prefix + leaf, None) for leaf in EXTRAS))
    if conf["format"] == INT8 and added.smooth is None and added.static is None:
        return None
    state[f"{prefix}comfy_quant"] = written({**conf, "format": INT8})
    return added


def put_back(module: Any, state: dict, prefix: str) -> None:
    """Write the activation scales of a layer, and its ``comfy_quant``, as they stand in a checkpoint."""
    params: Any = getattr(getattr(module, "weight", None), "_params", None)
    for leaf in EXTRAS:
        if getattr(params, leaf, None) is not None:
            state[prefix + leaf] = getattr(params, leaf)
    own = getattr(params, "stored_config", None)
    if own is not None:
        conf = {k: v for k, v in read(state[f"{prefix}comfy_quant"]).items() if k != "format"}
        state[f"{prefix}comfy_quant"] = written({**own(), **conf})


def relabel(module: Any, added: Added) -> None:
    """Give the weight that ComfyUI has just made its own layout."""
    from comfy_kitchen.tensor import QuantizedTensor

    from . import kitchen_layouts as layouts

    weight = module.weight
    if not hasattr(weight, "_params"):
        raise ValueError(
            f"this ComfyUI does not read {INT8} in a {type(module).__name__}, so it cannot read "
            f"{added.config['format']} there; update ComfyUI, or convert without these layers"
        )
    stock, shape = weight._params, tuple(weight._qdata.shape)
    smooth = _on(added.smooth, weight, shape[:-2] if _per_expert(added.smooth, shape) else ())
    if added.block:
        params: Any = layouts.BlockWiseINT8Layout.Params(
            stock.scale.float(), stock.orig_dtype, stock.orig_shape, added.block, smooth
        )
        _check_blocks(shape, params)
        name = layouts.BLOCKWISE
    else:
        static = added.static if added.static is None else _on(added.static, weight, ()).reshape(())
        params, name = layouts.extend_params(stock, smooth, static), layouts.EXTENDED
    module.layout_type = name
    module.weight = torch.nn.Parameter(QuantizedTensor(weight._qdata, name, params), requires_grad=False)


def _per_expert(scale: torch.Tensor | None, shape: tuple[int, ...]) -> bool:
    return scale is not None and len(shape) == 3 and scale.numel() == shape[0] * shape[-1]


def _on(scale: Any, weight: Any, lead: tuple[int, ...]) -> Any:
    """Return a scale [.., K] in float32, on the device of the weight's integers."""
    if scale is None:
        return None
    return scale.to(device=weight._qdata.device, dtype=torch.float32).reshape(*lead, -1)


def _check_blocks(shape: tuple[int, ...], params: Any) -> None:
    want = (*shape[:-2], *(-(-n // params.block_size) for n in shape[-2:]))
    if tuple(params.scale.shape) != want:
        raise ValueError(
            f"int8_blockwise weight {list(shape)} in blocks of {params.block_size} needs a weight_scale of "
            f"{list(want)}, the checkpoint has {list(params.scale.shape)}"
        )


def read(raw: torch.Tensor | None) -> Any:
    """Return the object in a ``comfy_quant`` tensor; None where there is none."""
    if raw is None:
        return None
    try:
        conf = json.loads(bytes(raw.cpu().numpy().tobytes()))
    except ValueError:
        return None  # ComfyUI's own loader says what is wrong
    return conf if isinstance(conf, dict) else None


def written(conf: dict) -> torch.Tensor:
    """Return the ``comfy_quant`` tensor of an object."""
    return torch.tensor(list(json.dumps(conf).encode("utf-8")), dtype=torch.uint8)
