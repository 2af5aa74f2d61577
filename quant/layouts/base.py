"""Storage layouts: how a float tensor becomes integers and parameters, and back."""

from typing import Any

import torch

LAYOUTS: dict[str, type["QuantizedLayout"]] = {}
"""Every layout by its class name; defining a subclass of QuantizedLayout adds it."""


class QuantizedLayout:
    """Base of all layouts. A new one defines `quantize` and `dequantize`, and is then known by name::

        class MyCustomLayout(QuantizedLayout):
            @classmethod
            def quantize(cls, tensor, scale=None, dtype=torch.int8, **kwargs):
                scale = tensor.abs().amax() / 127 if scale is None else scale
                q = (tensor / scale).round().clamp(-127, 127).to(dtype)
                return q, {"scale": scale, "orig_dtype": tensor.dtype}

            @staticmethod
            def dequantize(qdata, scale, orig_dtype, **kwargs):
                return (qdata * scale).to(orig_dtype)

        q = QuantizedTensor.from_float(weight, "MyCustomLayout")

    The parameters are a flat dict of tensors and plain values. "orig_dtype" gives the logical dtype;
    "orig_shape" the logical shape where it is not that of the integers. A layout that holds a checkpoint
    format's weights derives from `WeightLayout`, which brings linear, saving, LoRA and the rest.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        LAYOUTS[cls.__name__] = cls

    @classmethod
    def quantize(
        cls, tensor: torch.Tensor, *args: Any, **options: Any
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Quantize `tensor`; return ``(qdata, params)``."""
        raise TypeError(f"{cls.__name__} must define the classmethod quantize(tensor, **options)")

    @staticmethod
    def dequantize(qdata: torch.Tensor, *args: Any, **params: Any) -> torch.Tensor:
        """Return the float tensor of ``(qdata, params)``, in its original dtype and shape."""
        raise TypeError("a QuantizedLayout must define the static method dequantize(qdata, **params)")

    @classmethod
    def requantize_options(cls, params: dict[str, Any]) -> dict[str, Any]:
        """Return options with which `quantize` makes the same kind of tensor again."""
        return {}


def layout_class(layout: str | type[QuantizedLayout]) -> type[QuantizedLayout]:
    """Return the layout class of a name or class; ValueError names the known ones."""
    if isinstance(layout, type):
        return layout
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; known: {', '.join(sorted(LAYOUTS))}")
    return LAYOUTS[layout]
