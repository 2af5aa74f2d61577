"""The first half of the fused linear by itself: one quantization for several linears of one input."""

import torch

from . import _checks, activations, norm
from ._library import define
from .blockwise import _quantize_blockwise
from .int8_mm import is_blockwise
from .rotation import check_rotation
from .rowwise import _quantize_rowwise
from .scales import granularity


def block_of(qweight: _checks.Described, weight_scale: _checks.Described) -> int:
    """Return the columns per activation block that `qweight` [N, K] takes; 0 for one scale per row."""
    if not is_blockwise(qweight, weight_scale):
        return 0
    edge = granularity(qweight.shape[0], qweight.shape[1], weight_scale)[1]
    return 1 << (edge - 1).bit_length()


def check(
    x: _checks.Described,
    rotation: int,
    input_scale,
    input_activation: str | None,
    block: int,
    norm_weight: _checks.Described | None = None,
    norm_eps: float = 0.0,
) -> None:
    """Refuse what only the two halves of a linear together could not have."""
    _checks.floating("x", x)
    _checks.has_rows("x", x)
    activations.check_input(input_activation)
    k, halves = x.shape[-1], activations.halves(input_activation)
    if k % halves:
        raise ValueError(f"{input_activation} halves its input, which has {k} columns")
    check_rotation(k // halves, rotation)
    norm.check(norm_weight, norm_eps, k, input_activation, block)
    if input_scale is not None and input_scale.numel() != 1 and input_scale.shape != (*x.shape[:-1], 1):
        raise ValueError(
            f"input_scale must have one element or shape {(*x.shape[:-1], 1)}, not {tuple(input_scale.shape)}"
        )
    if block:
        _checks.power_of_two("block", block)
        if rotation or input_scale is not None:
            raise ValueError("activations in blocks have no rotation and no input_scale")


def _quantize_activations(
    x, rotation=0, input_scale=None, input_activation=None, block=0, norm_weight=None, norm_eps=1e-6
):
    check(x, rotation, input_scale, input_activation, block, norm_weight, norm_eps)
    x = activations.apply(input_activation, norm.apply(x, norm_weight, norm_eps)).to(x.dtype)
    if block:
        return _quantize_blockwise(x, 1, block)
    return _quantize_rowwise(x, rotation, input_scale)


def _fake(x, rotation=0, input_scale=None, input_activation=None, block=0, norm_weight=None, norm_eps=1e-6):
    k = x.shape[-1] // activations.halves(input_activation)
    scales = -(-k // block) if block else 1
    return (
        torch.empty((*x.shape[:-1], k), dtype=torch.int8, device=x.device),
        torch.empty((*x.shape[:-1], scales), dtype=torch.float32, device=x.device),
    )


_op = define(
    "quantize_activations(Tensor x, int rotation=0, Tensor? input_scale=None, str? input_activation=None, "
    "int block=0, Tensor? norm_weight=None, float norm_eps=1e-6) -> (Tensor, Tensor)",
    eager=_quantize_activations,
    fake=_fake,
    device="int8_linear.quantize_activations",
)


def quantize_activations(
    x: torch.Tensor,
    rotation: int = 0,
    input_scale: torch.Tensor | None = None,
    input_activation: str | None = None,
    block: int = 0,
    norm_weight: torch.Tensor | None = None,
    norm_eps: float = 1e-6,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `int8_linear` makes of its input: ``(q int8 [.., K], q_scale float32 [.., 1])``.

    Once for all weights that read x, by `int8_linear_prequantized` and `packed_linear_prequantized`::

        q, q_scale = quantize_activations(x, rotation=256)
        gate = int8_linear_prequantized(q, q_scale, *gate_weight)
        up = int8_linear_prequantized(q, q_scale, *up_weight)

    x: float32, float16 or bfloat16 [.., K]; [.., 2 K] for a gated activation. rotation, input_scale,
        input_activation, norm_weight, norm_eps: as in `int8_linear`; the rotation is that of all the weights.
    block: 0, or for block-wise weights their blocks' columns (a power of two), each of which gets a scale of
        its own in each row: q_scale is then [.., ceil(K / block)].
    Compiled code takes it too, but call it once: PyTorch's compiler does not make one of two that are alike.
    TypeError for dtypes; ValueError for shapes, a rotation that does not divide K, a norm beside an
    activation, or rotation, norm or input_scale with blocks.
    """
    return _op(x, rotation, input_scale, input_activation, block, norm_weight, norm_eps)
