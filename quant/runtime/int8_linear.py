"""Int8Linear: the fused linear as a module of plain tensors, for those who want no tensor subclass."""

from typing import Any

import torch
from torch import nn

from ...formats import CheckpointError
from ...formats.choose import default_format
from ...formats.names import CONFIG, WEIGHT
from ..layouts import LAYOUTS, weight_layout
from ..layouts.int8 import Int8Layout
from ..tensor import QuantizedTensor
from .stored import companions, read_weight, tensors_of


class Int8Linear(nn.Module):
    """y = x W^T + b with W as int8 buffers: what to export, trace or capture when subclasses are in the way.

    Its state dict holds the checkpoint contract's names (weight, weight_scale, comfy_quant, input_scale,
    pre_quant_scale, bias), so ``load_state_dict`` takes a checkpoint's layer.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Make an empty layer for ``load_state_dict`` to fill; see `from_quantized` and `from_linear`."""
        super().__init__()
        self.in_features, self.out_features, self.rotation = in_features, out_features, 0
        self.register_buffer(
            "weight", torch.zeros(out_features, in_features, dtype=torch.int8, device=device)
        )
        self.register_buffer("weight_scale", torch.ones(out_features, 1, device=device))
        dtype = dtype or torch.get_default_dtype()
        self.logical_dtype = dtype
        self._put("bias", torch.zeros(out_features, dtype=dtype, device=device) if bias else None)
        self._put("input_scale", None)
        self._put("pre_quant_scale", None)
        self.layout, self.plain = default_format().layout, {"rotation": 0}

    def _put(self, name: str, tensor: torch.Tensor | None) -> None:
        """Set an optional buffer. An absent one is an ordinary None: torch.export counts None buffers."""
        self._buffers.pop(name, None)
        self.__dict__.pop(name, None)
        if tensor is None:
            self.__dict__[name] = None
        else:
            self.register_buffer(name, tensor)

    @classmethod
    def from_quantized(cls, weight: QuantizedTensor, bias: torch.Tensor | None = None) -> "Int8Linear":
        """Return a layer around an existing quantized weight [N, K], sharing its storage.

        CheckpointError for a weight that is not INT8.
        """
        self = cls(weight.shape[1], weight.shape[0], bias is not None, weight.device, weight.dtype)
        self._take(weight)
        self._put("bias", None if bias is None else bias.detach())
        return self

    @classmethod
    def from_linear(cls, linear: nn.Linear, layout: str | None = None, **options: Any) -> "Int8Linear":
        """Quantize `linear` to nearest; options go to the layout (``rotation=256``, ``block_size=128``)."""
        weight = linear.weight
        if not isinstance(weight, QuantizedTensor):
            weight = QuantizedTensor.from_float(weight, layout or default_format().layout, **options)
        return cls.from_quantized(weight, linear.bias)

    def _take(self, weight: QuantizedTensor) -> None:
        layout, params = LAYOUTS[weight._layout_type], weight._layout_params
        if not issubclass(layout, Int8Layout):
            raise CheckpointError(f"{weight} is no INT8 weight; Int8Linear runs no other")
        self.weight, self.weight_scale = weight._qdata, layout.scale(params)
        self.rotation = params.get("rotation", 0)
        self.layout = layout.form(params).layout
        self.plain = {
            k: v for k, v in params.items() if not isinstance(v, torch.Tensor) and k != "orig_dtype"
        }
        self._put("input_scale", params.get("input_scale"))
        self._put("pre_quant_scale", params.get("pre_quant_scale"))

    def quantized_weight(self) -> QuantizedTensor:
        """Return the weight as a QuantizedTensor that shares this module's storage."""
        return QuantizedTensor(self.weight, self.layout, self._params())  # type: ignore[no-any-return]

    def _params(self) -> dict[str, Any]:
        scales = {"scale": self.weight_scale, "input_scale": self.input_scale}
        given = {k: v for k, v in scales.items() if v is not None}
        if self.pre_quant_scale is not None:
            given["pre_quant_scale"] = self.pre_quant_scale
        return {**self.plain, **given, "orig_dtype": self.logical_dtype}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output [.., N] for x [.., K], in x's dtype; differentiable in x."""
        params, bias = self._params(), self._buffers.get("bias")
        if "pre_quant_scale" in params:
            x = x * params["pre_quant_scale"].to(x.dtype)
        return weight_layout(self.layout).linear(x, self.weight, params, bias)

    def extra_repr(self) -> str:
        """Return sizes and rotation, for ``print(model)``."""
        return (
            f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, rotation={self.rotation}"
        )

    def _apply(self, fn, recurse=True):
        """Keep the scales float32 whatever dtype the model is cast to."""
        kept = {n: getattr(self, n) for n in ("weight_scale", "input_scale", "pre_quant_scale")}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            if value is not None:
                setattr(self, name, value.to(getattr(self, name).device))
        if self.bias is not None:
            self.logical_dtype = self.bias.dtype
        return self

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        for leaf, tensor in tensors_of(self.quantized_weight()).items():
            destination[prefix + leaf] = tensor
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias

    def _load_from_state_dict(self, state, prefix, meta, strict, missing, unexpected, errors):
        layer, device = prefix.rstrip("."), self.weight.device
        raw, config = state.get(f"{prefix}weight"), state.get(f"{prefix}comfy_quant")
        if raw is None or config is None:
            missing += [f"{prefix}{n}" for n, v in (("weight", raw), ("comfy_quant", config)) if v is None]
        else:
            beside = (e for e in companions() if e != CONFIG and prefix + e in state)
            tensors = {WEIGHT: raw.to(device), **{e: state[prefix + e].to(device) for e in beside}}
            try:
                weight = read_weight(config, tensors, layer, self.logical_dtype)[1]
                if weight.shape != (self.out_features, self.in_features) or not isinstance(
                    weight, QuantizedTensor
                ):
                    raise CheckpointError(f"layer {layer}: {weight} does not fit {self}")
                self._take(weight)
            except CheckpointError as e:
                errors.append(str(e))
        bias = state.get(f"{prefix}bias")
        if (bias is None) != (self.bias is None):
            (missing if bias is None else unexpected).append(f"{prefix}bias")
        elif bias is not None:
            self._put("bias", bias.to(device))
        known = {prefix + n for n in (*companions(), WEIGHT, "bias")}
        unexpected += [n for n in state if n.startswith(prefix) and n not in known]
