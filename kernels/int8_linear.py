"""The fused INT8 linear (W8A8): quantize the activations, multiply, scale."""

import torch

from . import _checks, activations
from ._library import define
from .blockwise import _quantize_blockwise
from .int8_mm import _int8_mm, is_blockwise
from .rotation import check_rotation
from .rowwise import _quantize_rowwise
from .scales import granularity


def check_weight(x, qweight, weight_scale, bias, rotation, input_activation=None) -> None:
    """Refuse operands of a quantized linear that do not fit; shared with the weight-only op."""
    _checks.floating("x", x)
    activations.check_input(input_activation)
    _checks.linear_weight(x, qweight, bias, activations.halves(input_activation))
    granularity(qweight.shape[0], qweight.shape[1], weight_scale)
    check_rotation(qweight.shape[1], rotation)
    if rotation and is_blockwise(qweight, weight_scale):
        raise ValueError("block-wise weights have no rotation: the block-wise format cannot say so")


def check_input_scale(x, qweight, weight_scale, input_scale) -> None:
    """Refuse a static activation scale that is not one element or one per row, or has a block-wise weight."""
    if input_scale is None:
        return
    if is_blockwise(qweight, weight_scale):
        raise ValueError("block-wise weights take dynamic activation blocks: input_scale must be None")
    if input_scale.numel() != 1 and input_scale.shape != (*x.shape[:-1], 1):
        raise ValueError(
            f"input_scale must have one element or shape {(*x.shape[:-1], 1)}, not {tuple(input_scale.shape)}"
        )


def _int8_linear(
    x,
    qweight,
    weight_scale,
    bias=None,
    rotation=0,
    input_scale=None,
    out_dtype=None,
    input_activation=None,
    output_activation=None,
):
    check_weight(x, qweight, weight_scale, bias, rotation, input_activation)
    check_input_scale(x, qweight, weight_scale, input_scale)
    out_dtype = out_dtype or x.dtype
    x = activations.apply(input_activation, x).to(x.dtype)
    if is_blockwise(qweight, weight_scale):
        edge_k = granularity(qweight.shape[0], qweight.shape[1], weight_scale)[1]
        q, scale = _quantize_blockwise(x, 1, 1 << (edge_k - 1).bit_length())
    else:
        q, scale = _quantize_rowwise(x, rotation, input_scale)
    return _int8_mm(q, qweight, scale, weight_scale, bias, out_dtype, output_activation)


def _fake(
    x,
    qweight,
    weight_scale,
    bias=None,
    rotation=0,
    input_scale=None,
    out_dtype=None,
    input_activation=None,
    output_activation=None,
):
    return torch.empty((*x.shape[:-1], qweight.shape[0]), dtype=out_dtype or x.dtype, device=x.device)


_op = define(
    "int8_linear(Tensor x, Tensor qweight, Tensor weight_scale, Tensor? bias=None, int rotation=0, "
    "Tensor? input_scale=None, ScalarType? out_dtype=None, str? input_activation=None, "
    "str? output_activation=None) -> Tensor",
    eager=_int8_linear,
    fake=_fake,
    device="int8_linear.int8_linear",
)


def int8_linear(
    x: torch.Tensor,
    qweight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    rotation: int = 0,
    input_scale: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    input_activation: str | None = None,
    output_activation: str | None = None,
) -> torch.Tensor:
    """Return out_act(quantize(rotate(in_act(x))) W^T * scales + bias): [.., K] -> [.., N].

    x: float32, float16 or bfloat16; [.., 2 K] for a gated input activation. qweight: int8 [N, K],
        already rotated when `rotation` is.
    weight_scale: float32 [], [N, 1] or block-wise [ceil(N / b), ceil(K / b)].
    rotation: the weight's ConvRot group, applied to x before it is quantized; 0 for none.
    input_scale: static activation scale of one element, or one per row [.., 1]; None quantizes each row
        by its own absmax (block-wise weights: each row's blocks of the weight's width).
    out_dtype: x.dtype when None. input_activation / output_activation: None, "gelu",
        "gelu_tanh" or "silu", folded into the quantizer's load and into the epilogue; for the
        input also "swiglu", silu(first half of x) * second half. What the input's gives is rounded to
        x.dtype, as an unfused model would.
    TypeError for dtypes; ValueError for shapes, a rotation that does not divide K, or rotation or
    input_scale with a block-wise weight.
    """
    return _op(
        x, qweight, weight_scale, bias, rotation, input_scale, out_dtype, input_activation, output_activation
    )
