"""The fused linear of packed weights (W4A8, W6A8, int4 rows): int8 activations times what codes decode to."""

import torch

from . import _checks, activations
from ._library import define
from .decode import Packed, _decode, as_bytes, check_packed
from .int8_mm import _int8_mm
from .rotation import check_rotation
from .rowwise import _quantize_rowwise


def _check_weight(x, qweight, bits, weight_scale, group_scale, codebook, bias) -> Packed:
    n, k, _ = found = check_packed(qweight, bits, group_scale, codebook)
    _checks.has_rows("x", x)
    if x.shape[-1] != k:
        raise ValueError(f"in_features differ: x has {x.shape[-1]} columns, the packed weight {k}")
    if weight_scale.numel() != n:
        raise ValueError(f"weight_scale must have {n} elements, one per row, not {weight_scale.numel()}")
    if bias is not None and tuple(bias.shape) != (n,):
        raise ValueError(f"bias must have shape ({n},), not {tuple(bias.shape)}")
    return found


def check(x, qweight, bits, weight_scale, group_scale, codebook, bias, rotation, input_scale) -> Packed:
    """Return the weight's shape; TypeError or ValueError for operands that do not fit."""
    _checks.floating("x", x)
    found = _check_weight(x, qweight, bits, weight_scale, group_scale, codebook, bias)
    check_rotation(found.k, rotation)
    if input_scale is not None and input_scale.numel() != 1 and input_scale.shape != (*x.shape[:-1], 1):
        raise ValueError(
            f"input_scale must have one element or shape {(*x.shape[:-1], 1)}, not {tuple(input_scale.shape)}"
        )
    return found


def _packed_linear(
    x,
    qweight,
    bits,
    weight_scale,
    group_scale=None,
    codebook=None,
    bias=None,
    rotation=0,
    input_scale=None,
    output_activation=None,
):
    check(x, qweight, bits, weight_scale, group_scale, codebook, bias, rotation, input_scale)
    activations.check(output_activation)
    q, scale = _quantize_rowwise(x, rotation, input_scale)
    weight = qweight, bits, weight_scale, group_scale, codebook
    return _packed_linear_prequantized(q, scale, *weight, bias, x.dtype, output_activation)


def _fake(
    x,
    qweight,
    bits,
    weight_scale,
    group_scale=None,
    codebook=None,
    bias=None,
    rotation=0,
    input_scale=None,
    output_activation=None,
):
    return torch.empty((*x.shape[:-1], qweight.shape[0]), dtype=x.dtype, device=x.device)


_op = define(
    "packed_linear(Tensor x, Tensor qweight, int bits, Tensor weight_scale, Tensor? group_scale=None, "
    "Tensor? codebook=None, Tensor? bias=None, int rotation=0, Tensor? input_scale=None, "
    "str? output_activation=None) -> Tensor",
    eager=_packed_linear,
    fake=_fake,
    device="packed_linear.packed_linear",
)


def packed_linear(
    x: torch.Tensor,
    qweight: torch.Tensor,
    bits: int,
    weight_scale: torch.Tensor,
    group_scale: torch.Tensor | None = None,
    codebook: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    rotation: int = 0,
    input_scale: torch.Tensor | None = None,
    output_activation: str | None = None,
) -> torch.Tensor:
    """Return out_act(quantize(rotate(x)) decode(W)^T * scales + bias) in x's dtype: [.., K] -> [.., N].

    The same bits as `int8_linear` on `decode`'s integers, which need not be in memory for it.

    x: float32, float16 or bfloat16. qweight, bits, group_scale, codebook: as in `decode`.
    weight_scale: float32, one element per row. bias: [N] or None. rotation, input_scale and
        output_activation: as in `int8_linear`.
    TypeError for dtypes, ValueError for shapes that do not fit or a rotation that does not divide K.
    """
    return _op(
        x,
        qweight,
        bits,
        weight_scale,
        as_bytes(group_scale),
        codebook,
        bias,
        rotation,
        input_scale,
        output_activation,
    )


def check_prequantized(q, q_scale, qweight, bits, weight_scale, group_scale, codebook, bias) -> Packed:
    """Return the weight's shape; TypeError or ValueError for operands that do not fit."""
    _checks.int8("q", q)
    if q_scale.shape != (*q.shape[:-1], 1):
        raise ValueError(f"q_scale must have shape {(*q.shape[:-1], 1)}, not {tuple(q_scale.shape)}")
    return _check_weight(q, qweight, bits, weight_scale, group_scale, codebook, bias)


def _packed_linear_prequantized(
    q,
    q_scale,
    qweight,
    bits,
    weight_scale,
    group_scale=None,
    codebook=None,
    bias=None,
    out_dtype=torch.bfloat16,
    output_activation=None,
):
    n = check_prequantized(q, q_scale, qweight, bits, weight_scale, group_scale, codebook, bias).n
    weight = _decode(qweight, bits, group_scale, codebook)
    return _int8_mm(q, weight, q_scale, weight_scale.reshape(n, 1), bias, out_dtype, output_activation)


def _fake_prequantized(
    q,
    q_scale,
    qweight,
    bits,
    weight_scale,
    group_scale=None,
    codebook=None,
    bias=None,
    out_dtype=torch.bfloat16,
    output_activation=None,
):
    return torch.empty((*q.shape[:-1], qweight.shape[0]), dtype=out_dtype, device=q.device)


_prequantized = define(
    "packed_linear_prequantized(Tensor q, Tensor q_scale, Tensor qweight, int bits, Tensor weight_scale, "
    "Tensor? group_scale=None, Tensor? codebook=None, Tensor? bias=None, ScalarType out_dtype=bfloat16, "
    "str? output_activation=None) -> Tensor",
    eager=_packed_linear_prequantized,
    fake=_fake_prequantized,
    device="packed_linear.packed_linear_prequantized",
)


def packed_linear_prequantized(
    q: torch.Tensor,
    q_scale: torch.Tensor,
    qweight: torch.Tensor,
    bits: int,
    weight_scale: torch.Tensor,
    group_scale: torch.Tensor | None = None,
    codebook: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    output_activation: str | None = None,
) -> torch.Tensor:
    """Return `packed_linear` of an input that `quantize_activations` has quantized: [.., K] -> [.., N].

    q int8 [.., K], q_scale float32 [.., 1]: what it returned, with this weight's rotation. The rest: as in
        `packed_linear`, and the same bits.
    TypeError for dtypes, ValueError for shapes that do not fit.
    """
    return _prequantized(
        q,
        q_scale,
        qweight,
        bits,
        weight_scale,
        as_bytes(group_scale),
        codebook,
        bias,
        out_dtype,
        output_activation,
    )
