"""LDLQ and the Hessian as layout ops: a QuantizedTensor re-quantized in place, or taken as tokens."""

from typing import Any

import torch

from .. import kernels
from .algorithms.hessian import factorize
from .algorithms.ldlq import quantize_with_factor
from .algorithms.types import QuantizeOptions, Scaling
from .dispatch import register_layout_op
from .int8_layouts import BlockWiseINT8Layout, TensorWiseINT8Layout
from .tensor import QuantizedTensor

ops = torch.ops.convert_to_quant


@register_layout_op(ops.ldlq_, TensorWiseINT8Layout)
@register_layout_op(ops.ldlq_, BlockWiseINT8Layout)
def _ldlq_(func: Any, args: tuple, kwargs: dict) -> torch.Tensor:
    """``ldlq_(q, w, hessian, scale)``: re-quantize q [N, K] from the float weight w [N, K], in place.

    hessian: [K, K] float32 of the inputs, in the space of q's integers (`accumulate_hessian_` with q's
    rotation); it is damped by 0.01 of its mean diagonal. scale: float32, shaped like q's own, which it
    replaces. Returns the errors W - Q [N, K] float32, in that space too.
    """
    names = ("q", "w", "feedback", "scale")
    q, w, hessian, scale = (args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names))
    if not isinstance(q, QuantizedTensor) or q._layout_params.get("transposed"):
        raise TypeError("ldlq_ writes into a QuantizedTensor [N, K] that is not transposed")
    w = (w.dequantize() if isinstance(w, QuantizedTensor) else w).detach()
    k = q.shape[1]
    if w.shape != q.shape or hessian.shape != (k, k):
        raise ValueError(
            f"q {tuple(q.shape)} needs w of that shape and a hessian ({k}, {k}), not "
            f"{tuple(w.shape)} and {tuple(hessian.shape)}"
        )
    own = q._layout_params["scale"]
    if scale.shape != own.shape:
        raise ValueError(f"scale must have shape {tuple(own.shape)} like q's, not {tuple(scale.shape)}")
    options = _options(q)
    factor = factorize(lambda: hessian.float(), options)
    q._qdata.copy_(quantize_with_factor(w, factor, scale.float(), options))
    own.copy_(scale)
    return _rotated(w, options) - kernels.dequantize(q._qdata, own)


def _options(q: QuantizedTensor) -> QuantizeOptions:
    params = q._layout_params
    if q._layout_type == "BlockWiseINT8Layout":
        return QuantizeOptions("ldlq", "block", block_size=params.get("block_size", 128))
    scaling: Scaling = "tensor" if params["scale"].numel() == 1 and q.shape[0] != 1 else "row"
    return QuantizeOptions("ldlq", scaling, rotation=params.get("rotation", 0))


def _rotated(w: torch.Tensor, options: QuantizeOptions) -> torch.Tensor:
    return kernels.rotate(w.float(), options.rotation) if options.rotation else w.float()


@register_layout_op(ops.accumulate_hessian_, TensorWiseINT8Layout)
@register_layout_op(ops.accumulate_hessian_, BlockWiseINT8Layout)
def _accumulate_hessian_(func: Any, args: tuple, kwargs: dict) -> None:
    """``accumulate_hessian_(h, x, rotation)`` for quantized tokens x.

    Integers that are already rotated by the group asked for are not un-rotated first.
    """
    h, x = args[0], args[1]
    rotation = args[2] if len(args) > 2 else kwargs.get("rotation", 0)
    if isinstance(h, QuantizedTensor):
        raise TypeError("accumulate_hessian_ sums into a float32 matrix, not a QuantizedTensor")
    params = x._layout_params
    if rotation and params.get("rotation") == rotation and not params.get("transposed"):
        tokens = kernels.dequantize(x._qdata, params["scale"])
        return ops.accumulate_hessian_(h, tokens, 0)
    return ops.accumulate_hessian_(h, x.dequantize(), rotation)
