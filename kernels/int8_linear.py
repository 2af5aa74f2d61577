"""The fused INT8 linear (W8A8): quantize the activations, multiply, scale."""

import torch

from . import _checks, activations
from . import residual as residuals
from ._library import define
from .int8_mm import _check, _int8_mm, is_blockwise
from .quantize_activations import _quantize_activations, block_of
from .rotation import check_rotation
from .scales import granularity

FEW_ROWS = 16
"""Rows up to which the weights' bytes alone count, and one launch less is what can be won."""


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
    norm_weight=None,
    norm_eps=1e-6,
    residual=None,
    residual_scale=None,
):
    check_weight(x, qweight, weight_scale, bias, rotation, input_activation)
    check_input_scale(x, qweight, weight_scale, input_scale)
    block = block_of(qweight, weight_scale)
    q, scale = _quantize_activations(x, rotation, input_scale, input_activation, block, norm_weight, norm_eps)
    return _product(
        q,
        scale,
        (qweight, weight_scale, bias),
        out_dtype or x.dtype,
        output_activation,
        residual,
        residual_scale,
    )


def _product(q, q_scale, weight, out_dtype, output_activation, residual, residual_scale):
    """The second half of the linear: `weight` is (qweight, weight_scale, bias)."""
    qweight, weight_scale, bias = weight
    residuals.check(residual, residual_scale, (*q.shape[:-1], qweight.shape[0]))
    if residual is None:
        return _int8_mm(q, qweight, q_scale, weight_scale, bias, out_dtype, output_activation)
    y = _int8_mm(q, qweight, q_scale, weight_scale, bias, torch.float32, output_activation)
    return residuals.add(y, residual, residual_scale, out_dtype)


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
    norm_weight=None,
    norm_eps=1e-6,
    residual=None,
    residual_scale=None,
):
    return torch.empty((*x.shape[:-1], qweight.shape[0]), dtype=out_dtype or x.dtype, device=x.device)


_op = define(
    "int8_linear(Tensor x, Tensor qweight, Tensor weight_scale, Tensor? bias=None, int rotation=0, "
    "Tensor? input_scale=None, ScalarType? out_dtype=None, str? input_activation=None, "
    "str? output_activation=None, Tensor? norm_weight=None, float norm_eps=1e-6, Tensor? residual=None, "
    "Tensor? residual_scale=None) -> Tensor",
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
    norm_weight: torch.Tensor | None = None,
    norm_eps: float = 1e-6,
    residual: torch.Tensor | None = None,
    residual_scale: torch.Tensor | None = None,
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
    norm_weight, norm_eps: of an RMSNorm [K] of x, in place of an input activation: float32 inside, its
        result rounded to x.dtype. None for none.
    residual, residual_scale: floats [.., N] and [N] (None for ones). The result is then
        residual + residual_scale * out_act(..), in float32 and rounded once to out_dtype.
    TypeError for dtypes; ValueError for shapes, a rotation that does not divide K, a norm beside an input
    activation, or rotation, norm or input_scale with a block-wise weight.
    """
    return _op(
        x,
        qweight,
        weight_scale,
        bias,
        rotation,
        input_scale,
        out_dtype,
        input_activation,
        output_activation,
        norm_weight,
        norm_eps,
        residual,
        residual_scale,
    )


def check_prequantized(q, q_scale, qweight, weight_scale, bias, x, rotation) -> None:
    """Refuse operands of `int8_linear_prequantized` that do not fit."""
    _check(q, qweight, q_scale, weight_scale, bias)
    if x is not None:
        if x.shape != q.shape:
            raise ValueError(f"x {tuple(x.shape)} is not what q {tuple(q.shape)} was made from")
        check_weight(x, qweight, weight_scale, bias, rotation)


def _int8_linear_prequantized(
    q,
    q_scale,
    qweight,
    weight_scale,
    bias=None,
    out_dtype=torch.bfloat16,
    output_activation=None,
    x=None,
    rotation=0,
    residual=None,
    residual_scale=None,
):
    check_prequantized(q, q_scale, qweight, weight_scale, bias, x, rotation)
    weight = qweight, weight_scale, bias
    return _product(q, q_scale, weight, out_dtype, output_activation, residual, residual_scale)


def _fake_prequantized(
    q,
    q_scale,
    qweight,
    weight_scale,
    bias=None,
    out_dtype=torch.bfloat16,
    output_activation=None,
    x=None,
    rotation=0,
    residual=None,
    residual_scale=None,
):
    return torch.empty((*q.shape[:-1], qweight.shape[0]), dtype=out_dtype, device=q.device)


_prequantized = define(
    "int8_linear_prequantized(Tensor q, Tensor q_scale, Tensor qweight, Tensor weight_scale, "
    "Tensor? bias=None, ScalarType out_dtype=bfloat16, str? output_activation=None, Tensor? x=None, "
    "int rotation=0, Tensor? residual=None, Tensor? residual_scale=None) -> Tensor",
    eager=_int8_linear_prequantized,
    fake=_fake_prequantized,
    device="int8_linear.int8_linear_prequantized",
)


def int8_linear_prequantized(
    q: torch.Tensor,
    q_scale: torch.Tensor,
    qweight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    output_activation: str | None = None,
    x: torch.Tensor | None = None,
    rotation: int = 0,
    residual: torch.Tensor | None = None,
    residual_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return `int8_linear` of an input that `quantize_activations` has quantized: [.., K] -> [.., N].

    q, q_scale: what it returned, with the rotation and blocks of this weight. qweight, weight_scale, bias,
        output_activation, residual, residual_scale: as in `int8_linear`, and the same bits.
    x, rotation: the input that q was made from, without activation or norm, and the weight's rotation. Where
        x is given the float linear may serve instead, as in `int8_linear`: where it was measured faster.
    TypeError for dtypes, ValueError for shapes that do not fit.
    """
    return _prequantized(
        q,
        q_scale,
        qweight,
        weight_scale,
        bias,
        out_dtype,
        output_activation,
        x,
        rotation,
        residual,
        residual_scale,
    )
