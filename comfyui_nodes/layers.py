"""ComfyUI's quantized layers, extended to load, run and save the added formats.

ComfyUI's own layer does the loading: it is shown an ``int8_tensorwise`` one, and the weight that it makes
gets the right layout afterwards. So its placement, casting and patching stay in use, and ``quant_format`` of
a layer stays ``int8_tensorwise``: what it really is stands in the weight.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from .kitchen_layouts import LAYOUTS
from .stored import put_back, relabel, taken


def _reading(stock: type) -> type:
    """Make the subclass of a layer that loads and saves the added formats."""

    class Reading(stock):  # type: ignore[misc, valid-type]
        def _load_from_state_dict(self, state: dict, prefix: str, *args: Any) -> None:
            added = taken(state, prefix)
            super()._load_from_state_dict(state, prefix, *args)
            if added is not None:
                relabel(self, added)

        def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", **kwargs: Any) -> Any:
            sd = super().state_dict(*args, destination=destination, prefix=prefix, **kwargs)
            put_back(self, sd, prefix)
            return sd

    Reading.__name__ = stock.__name__
    Reading.__qualname__ = getattr(stock, "__qualname__", stock.__name__)
    return Reading


def extended_experts(stock: type) -> type:
    """Make the subclass of ComfyUI's bank of experts [E, N, K] that reads and multiplies the added formats.

    An expert's part of a weight keeps all that the weight has: ComfyUI 0.33 leaves the rotation of an INT8
    bank behind, and takes the rotated integers for plain ones.
    """

    class Experts(_reading(stock)):  # type: ignore[misc]
        def _expert_qt_from(self, weight: Any, i: int) -> Any:
            params = weight._params
            if not hasattr(params, "convrot") and weight._layout_cls not in LAYOUTS:
                return super()._expert_qt_from(weight, i)
            own = {
                name: part[i]
                for name in ("scale", "pre_quant_scale")
                if (part := getattr(params, name, None)) is not None and part.dim() > 1
            }
            made = replace(params, **own, orig_shape=tuple(weight._qdata.shape[1:]))
            return type(weight)(weight._qdata[i], weight._layout_cls, made)

        def _expert_linear_impl(self, input: torch.Tensor, weight: Any, bias: Any, i: int) -> Any:
            if getattr(weight, "_layout_cls", None) not in LAYOUTS or self._full_precision_mm:
                return super()._expert_linear_impl(input, weight, bias, i)
            b = None if bias is None else bias[i].to(device=input.device, dtype=input.dtype)
            return torch.nn.functional.linear(input, self._expert_qt_from(weight, i), b)

    Experts.__name__ = stock.__name__
    Experts.__qualname__ = getattr(stock, "__qualname__", stock.__name__)
    return Experts


EXTENDED: dict[str, Callable[[type], type]] = {
    "Linear": _reading,
    "Embedding": _reading,
    "MoEExperts": extended_experts,
}
"""Class name in ComfyUI's factory of operations -> what makes its extension."""
