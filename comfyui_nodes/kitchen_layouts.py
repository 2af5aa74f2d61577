"""Layouts for comfy-kitchen's QuantizedTensor, the weight class of ComfyUI: what its own table lacks.

Imported only where comfy-kitchen is. The layouts carry ``pre_quant_scale`` inside the weight, so that its
float form is the weight the model was trained with and ComfyUI's LoRA patches land where they belong.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy_kitchen.tensor import (
    BaseLayoutParams,
    QuantizedLayout,
    QuantizedTensor,
    TensorWiseINT8Layout,
    dequantize_args,
    register_layout_op,
)

from convert_to_quant.kernels import dequantize, int8_linear, quantize_blockwise

aten = torch.ops.aten
PRODUCTS = (aten.linear.default, aten.mm.default, aten.addmm.default)
"""The forms in which a linear reaches a weight."""

BLOCKWISE, EXTENDED = "BlockWiseINT8Layout", "ExtendedINT8Layout"
LAYOUTS = (BLOCKWISE, EXTENDED)
_OPTIONAL = ("pre_quant_scale", "input_scale")


def _fields(params: Any) -> list[str]:
    return ["scale", *(n for n in _OPTIONAL if getattr(params, n, None) is not None)]


def _divide(tensor: torch.Tensor, smooth: torch.Tensor | None) -> torch.Tensor:
    return tensor if smooth is None else tensor.float() / _rows(smooth, tensor, torch.float32)


def _multiply(tensor: torch.Tensor, smooth: torch.Tensor | None) -> torch.Tensor:
    return tensor if smooth is None else tensor * _rows(smooth, tensor, tensor.dtype)


def _rows(smooth: torch.Tensor, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return [K] as it is, and [E, K] of a bank as [E, 1, K]."""
    smooth = smooth.to(tensor.device, dtype)
    return smooth if smooth.dim() == 1 else smooth.unsqueeze(-2)


def _each(tensor: torch.Tensor, *beside: torch.Tensor) -> Any:
    """Yield a weight [N, K] and what is beside it, or the experts of a bank [E, N, K] and their shares."""
    return zip(tensor, *beside, strict=True) if tensor.dim() == 3 else [(tensor, *beside)]


def _joined(parts: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    return torch.stack(parts) if like.dim() == 3 else parts[0]


class BlockWiseINT8Layout(QuantizedLayout):
    """``int8_blockwise``: one scale per square block of the weight [N, K], or of each expert of [E, N, K]."""

    MIN_SM_VERSION = (7, 5)

    @dataclass(frozen=True)
    class Params(BaseLayoutParams):
        """scale float32 [.., ceil(N / b), ceil(K / b)], pre_quant_scale [K], [E, K] or None."""

        block_size: int = 128
        pre_quant_scale: torch.Tensor | None = None
        transposed: bool = False

        def _tensor_fields(self) -> list[str]:
            return _fields(self)

        def stored_config(self) -> dict[str, Any]:
            """Return the format's own part of ``comfy_quant``."""
            return {"format": "int8_blockwise", "group_size": self.block_size}

    @classmethod
    def quantize(
        cls,
        tensor: torch.Tensor,
        scale: Any = None,
        stochastic_rounding: int | None = 0,
        inplace_ops: bool = False,
        block_size: int = 128,
        pre_quant_scale: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, "BlockWiseINT8Layout.Params"]:
        """Round to nearest; with a seed `stochastic_rounding` > 0 up or down by chance, as ComfyUI asks.

        `scale` is always computed anew; `inplace_ops` and other arguments of ComfyUI are accepted.
        """
        smooth = _divide(tensor, pre_quant_scale)
        made = [quantize_blockwise(w, block_size, block_size) for (w,) in _each(smooth)]
        q, scales = (_joined([m[i] for m in made], tensor) for i in (0, 1))
        if stochastic_rounding and stochastic_rounding > 0:
            rounded = [_by_chance(w, s, block_size, stochastic_rounding) for w, s in _each(smooth, scales)]
            q = _joined(rounded, tensor)
        params = cls.Params(scales, tensor.dtype, tuple(tensor.shape), block_size, pre_quant_scale)
        return q, params

    @classmethod
    def dequantize(cls, qdata: torch.Tensor, params: Any) -> torch.Tensor:
        """Return the float weight [N, K], or bank [E, N, K], in its original dtype."""
        floats = [dequantize(q, scale, params.orig_dtype) for q, scale in _each(qdata, params.scale)]
        return _multiply(_joined(floats, qdata), params.pre_quant_scale)

    @classmethod
    def dequantize_embedding(cls, qdata: torch.Tensor, params: Any, indices: torch.Tensor) -> torch.Tensor:
        """Return rows of a table [N, K] as floats [.., K], making only those."""
        b = params.block_size
        scale = params.scale[indices // b].repeat_interleave(b, -1)[..., : qdata.shape[-1]]
        rows = (qdata[indices].float() * scale).to(params.orig_dtype)
        return _multiply(rows, params.pre_quant_scale)

    @classmethod
    def get_plain_tensors(cls, qtensor: QuantizedTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (integers, scale)."""
        return qtensor._qdata, qtensor._params.scale

    @classmethod
    def state_dict_tensors(cls, qdata: torch.Tensor, params: Any) -> dict[str, torch.Tensor]:
        """Return suffix -> tensor; a suffix is appended to the name of the weight."""
        return {"": qdata, "_scale": params.scale}

    @classmethod
    def requantize_kwargs(cls, qtensor: QuantizedTensor) -> dict[str, Any]:
        """Return the options that make a weight of the same kind again, after a LoRA."""
        params = qtensor._params
        return {"block_size": params.block_size, "pre_quant_scale": params.pre_quant_scale}


def _by_chance(weight: torch.Tensor, scale: torch.Tensor, block: int, seed: int) -> torch.Tensor:
    """Round up with the probability of the fraction, reproducible from `seed`."""
    n, k = weight.shape
    full = scale.repeat_interleave(block, 0)[:n].repeat_interleave(block, 1)[:, :k]
    chance = torch.rand(n, k, generator=torch.Generator().manual_seed(seed)).to(weight.device)
    return (weight.float() / full + chance).floor_().clamp_(-127, 127).to(torch.int8)


class ExtendedINT8Layout(TensorWiseINT8Layout):
    """``int8_tensorwise`` with a pre_quant_scale (SmoothQuant) or input_scale (static activations)."""

    @dataclass(frozen=True)
    class Params(TensorWiseINT8Layout.Params):
        """As the stock layout's; pre_quant_scale [K] or None; input_scale [] or None."""

        pre_quant_scale: torch.Tensor | None = None
        input_scale: torch.Tensor | None = None

        def _tensor_fields(self) -> list[str]:
            return _fields(self)

        def stored_config(self) -> dict[str, Any]:
            """Return the format's own part of ``comfy_quant``, rotation aside."""
            return {"format": "int8_tensorwise" if self.pre_quant_scale is None else "int8_smooth"}

    @classmethod
    def quantize(
        cls,
        tensor: torch.Tensor,
        *args: Any,
        pre_quant_scale: torch.Tensor | None = None,
        input_scale: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, Any]:
        """Quantize the columns divided by pre_quant_scale, with the stock quantizer."""
        smooth = _divide(tensor, pre_quant_scale).to(tensor.dtype)
        made = [super(ExtendedINT8Layout, cls).quantize(w, *args, **kwargs) for (w,) in _each(smooth)]
        q = _joined([m[0] for m in made], tensor)
        stock = replace(made[0][1], scale=_joined([m[1].scale for m in made], tensor))
        stock = replace(stock, orig_shape=tuple(tensor.shape))
        return q, extend_params(stock, pre_quant_scale, input_scale)

    @classmethod
    def dequantize(cls, qdata: torch.Tensor, params: Any) -> torch.Tensor:
        """Return the float weight [N, K], or bank [E, N, K], in its original dtype."""
        scales = params.scale.expand(qdata.shape[0], *params.scale.shape[-2:]) if qdata.dim() == 3 else None
        each = [(qdata, params.scale)] if scales is None else zip(qdata, scales, strict=True)
        parts = [super(ExtendedINT8Layout, cls).dequantize(q, replace(params, scale=s)) for q, s in each]
        return _multiply(_joined(parts, qdata), params.pre_quant_scale)

    @classmethod
    def dequantize_embedding(cls, qdata: torch.Tensor, params: Any, indices: torch.Tensor) -> torch.Tensor:
        """Return rows of a table [N, K] as floats [.., K], making only those."""
        return _multiply(super().dequantize_embedding(qdata, params, indices), params.pre_quant_scale)

    @classmethod
    def requantize_kwargs(cls, qtensor: QuantizedTensor) -> dict[str, Any]:
        """Return the stock options, pre_quant_scale and input_scale."""
        own = {name: getattr(qtensor._params, name) for name in _OPTIONAL}
        return {**super().requantize_kwargs(qtensor), **own}

    @classmethod
    def linear_input_act(cls, *args: Any, **kwargs: Any) -> Any:
        """Leave compound operations, which do not know the extra scales, to the caller's own fallback."""
        return NotImplemented

    fused_rms_modulated = linear_input_act


def extend_params(
    params: Any, pre_quant_scale: torch.Tensor | None, input_scale: torch.Tensor | None = None
) -> Any:
    """Return the stock parameters with the two extra scales."""
    own = {
        name: getattr(params, name) for name in ("scale", "orig_dtype", "orig_shape", "is_weight", "convrot")
    }
    return ExtendedINT8Layout.Params(
        **own,
        convrot_groupsize=params.convrot_groupsize,
        pre_quant_scale=pre_quant_scale,
        input_scale=input_scale,
    )


def operands(op: Any, args: tuple, kwargs: dict) -> tuple[torch.Tensor, Any, torch.Tensor | None] | None:
    """Return (x, weight, bias) of a product with an INT8 weight [N, K], or None for anything else.

    In inference mode ``F.linear`` arrives as ``aten.linear``; under no_grad it has been taken apart into
    ``t`` and ``mm`` or ``addmm``, whose weight is marked as transposed.
    """
    if op is aten.linear.default:
        x, weight, bias = args[0], args[1], (args[2] if len(args) > 2 else kwargs.get("bias"))
    elif op is aten.mm.default:
        (x, weight), bias = args, None
    else:
        bias, x, weight = args
        if bias.dim() != 1 or kwargs.get("alpha", 1) != 1 or kwargs.get("beta", 1) != 1:
            return None
    params = getattr(weight, "_params", None)
    if params is None or bool(params.transposed) == (op is aten.linear.default) or weight._qdata.dim() != 2:
        return None
    return x.dequantize() if isinstance(x, QuantizedTensor) else x, weight, bias


def fused(x: torch.Tensor, weight: Any, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute x W^T + bias on the fused kernel of convert_to_quant."""
    params = weight._params
    rotation = params.convrot_groupsize if getattr(params, "convrot", False) else 0
    x = _multiply(x, getattr(params, "pre_quant_scale", None))
    return int8_linear(x, weight._qdata, params.scale, bias, rotation, getattr(params, "input_scale", None))


def _product(op: Any) -> Any:
    def handler(qt: Any, args: tuple, kwargs: dict) -> torch.Tensor:
        found = operands(op, args, kwargs)
        return fused(*found) if found else op(*dequantize_args(args), **dequantize_args(kwargs))

    return handler


def _transpose(qt: Any, args: tuple, kwargs: dict) -> QuantizedTensor:
    weight = args[0]
    old = weight._params
    new = replace(old, orig_shape=tuple(old.orig_shape)[::-1], transposed=not old.transposed)
    return QuantizedTensor(weight._qdata, weight._layout_cls, new)


for _layout in (BlockWiseINT8Layout, ExtendedINT8Layout):
    register_layout_op(aten.t.default, _layout)(_transpose)
    for _op in PRODUCTS:
        register_layout_op(_op, _layout)(_product(_op))
