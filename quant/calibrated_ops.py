"""LDLQ and the Hessian as layout ops: a QuantizedTensor re-quantized in place, or taken as tokens."""

from typing import Any

import torch

from .. import kernels
from .algorithms.hessian import factorize
from .algorithms.ldlq import quantize_with_factor
from .algorithms.tiles import grid_of, wrap
from .algorithms.types import QuantizeOptions
from .dispatch import register_layout_op
from .layouts import WeightLayout, weight_layout
from .tensor import QuantizedTensor

ops = torch.ops.convert_to_quant


@register_layout_op(ops.ldlq_, WeightLayout)
def _ldlq_(func: Any, args: tuple, kwargs: dict) -> torch.Tensor:
    """Run ``ldlq_(q, w, hessian, scale)``: re-quantize q [N, K] from the float weight w [N, K], in place.

    hessian: [K, K] float32 of the inputs, in the space of q's integers (`accumulate_hessian_` with q's
    rotation); it is damped as by default. scale: float32, shaped like q's own, which it
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
    layout = weight_layout(q._layout_type)
    form = layout.form(q._layout_params)
    options = QuantizeOptions("ldlq", form)
    grid = grid_of(options)
    wanted = grid.scale_shape((q.shape[0], k))
    own = q._layout_params.get("scale")
    if scale.shape not in (wanted, None if own is None else own.shape):
        raise ValueError(f"scale must have shape {wanted} like q's, not {tuple(scale.shape)}")
    given = scale if scale.is_complex() else scale.float()
    scale = grid.settle(given.reshape(wanted)).clone()
    codes = quantize_with_factor(w, factorize(lambda: hessian.float(), options), scale, options)
    mine = q.inner_tensors()
    for name, made in wrap(codes, scale, q.dtype, options).inner_tensors().items():
        mine[name].copy_(made.reshape(mine[name].shape))
    rotated = kernels.rotate(w.float(), form.rotation) if form.rotation else w.float()
    return rotated - grid.values(codes.float(), grid.view(scale, slice(0, q.shape[0]), k))


@register_layout_op(ops.accumulate_hessian_, WeightLayout)
def _accumulate_hessian_(func: Any, args: tuple, kwargs: dict) -> None:
    """Run ``accumulate_hessian_(h, x, rotation)`` for quantized tokens x.

    Integers that are already rotated by the group asked for are not un-rotated first.
    """
    h, x = args[0], args[1]
    rotation = args[2] if len(args) > 2 else kwargs.get("rotation", 0)
    if isinstance(h, QuantizedTensor):
        raise TypeError("accumulate_hessian_ sums into a float32 matrix, not a QuantizedTensor")
    stored = weight_layout(x._layout_type).tokens(x._qdata, x._layout_params, rotation)
    if stored is not None:
        return ops.accumulate_hessian_(h, stored, 0)
    return ops.accumulate_hessian_(h, x.dequantize(), rotation)
