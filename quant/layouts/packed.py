"""What layouts of packed codes share: they are run as the INT8 product of what the codes decode to."""

from typing import ClassVar

import torch

from ...kernels import decode, dequantize, int8_weight_only_linear
from ..sharing import quantized
from .weight import Params, WeightLayout

ops = torch.ops.convert_to_quant


class PackedLayout(WeightLayout):
    """Codes of fewer than eight bits in `qdata` [N, K bits / 8], and a float32 scale per row.

    A layout defines `row_scale` and, where codes are no integers themselves, `decoding`, beside what
    `WeightLayout` asks for.
    """

    quantizes_activations: ClassVar[bool] = True

    @classmethod
    def decoding(cls, params: Params) -> tuple[int, torch.Tensor | None, torch.Tensor | None]:
        """Return bits, group scales as bytes and codebook, as `kernels.decode` takes them."""
        return 4, None, None

    @classmethod
    def integers(cls, qdata: torch.Tensor, params: Params) -> torch.Tensor:
        """Return what the codes decode to, int8 [N, K]."""
        return decode(qdata, *cls.decoding(params))

    @classmethod
    def row_scale(cls, params: Params) -> torch.Tensor:
        """Return what multiplies each row's integers, float32 [N, 1]."""
        raise TypeError(f"{cls.__name__} must define row_scale(params)")

    @classmethod
    def values(cls, qdata: torch.Tensor, params: Params) -> torch.Tensor:
        """Return the integers times their row's scale, float32, still rotated."""
        return dequantize(cls.integers(qdata, params), cls.row_scale(params))

    @classmethod
    def linear(
        cls, x: torch.Tensor, qdata: torch.Tensor, params: Params, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the INT8 product with activations quantized per row; differentiable in x where wanted."""
        if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
            return cls.exact_linear(x, qdata, params, bias)
        bits, scale, codebook = cls.decoding(params)
        weight = qdata, bits, cls.row_scale(params), scale, codebook, bias
        rotation, static = params["rotation"], params.get("input_scale")
        shared = None if static is not None else quantized(x, qdata, rotation)
        if shared is not None:
            return ops.packed_linear_prequantized(*shared, *weight, x.dtype)  # type: ignore[no-any-return]
        return ops.packed_linear(x, *weight, rotation, static)  # type: ignore[no-any-return]

    @classmethod
    def weight_only(cls, x: torch.Tensor, qdata: torch.Tensor, params: Params) -> torch.Tensor:
        """Return x W^T with exact activations."""
        q = cls.integers(qdata, params)
        return int8_weight_only_linear(x, q, cls.row_scale(params), None, params["rotation"])
