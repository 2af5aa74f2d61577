"""What the INT8 layouts share: integers -127 to 127, float32 scales, and the fused INT8 product."""

from typing import ClassVar

import torch

from ... import kernels
from ...kernels import dequantize as dequantize_int8
from ...kernels import int8_weight_only_linear
from ..sharing import quantized
from .weight import Params, WeightLayout

ops = torch.ops.convert_to_quant


class Int8Layout(WeightLayout):
    """Int8 codes in `qdata` [N, K], and a "scale" that the kernels take: [], [N, 1] or one per block."""

    quantizes_activations: ClassVar[bool] = True

    @classmethod
    def scale(cls, params: Params) -> torch.Tensor:
        """Return the scale as the kernels take it: float32 [], [N, 1] or [ceil(N / b), ceil(K / b)]."""
        found: torch.Tensor = params["scale"]
        return found

    @staticmethod
    def floats(
        qdata: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, rotation: int = 0
    ) -> torch.Tensor:
        """Return q * scale, un-rotated, as `dtype`; through float32 where the op has it not (float64)."""
        direct = dtype in (torch.float32, torch.float16, torch.bfloat16)
        return dequantize_int8(qdata, scale, dtype if direct else torch.float32, rotation).to(dtype)

    @classmethod
    def values(cls, qdata: torch.Tensor, params: Params) -> torch.Tensor:
        """Return q * scale in float32, still rotated."""
        return kernels.dequantize(qdata, cls.scale(params))

    @classmethod
    def linear(
        cls, x: torch.Tensor, qdata: torch.Tensor, params: Params, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the INT8 product with activations quantized per row; differentiable in x where wanted.

        float64 goes through float32.
        """
        if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
            return cls.exact_linear(x, qdata, params, bias)
        if x.dtype == torch.float64:  # what the activations are rounded to is no finer for it
            narrow = None if bias is None else bias.float()
            return cls.linear(x.float(), qdata, params, narrow).double()
        rotation, static, scale = params.get("rotation", 0), params.get("input_scale"), cls.scale(params)
        shared = None if static is not None else quantized(x, qdata, rotation, scale)
        if shared is not None:
            return ops.int8_linear_prequantized(  # type: ignore[no-any-return]
                *shared, qdata, scale, bias, x.dtype, None, x, rotation
            )
        return ops.int8_linear(x, qdata, scale, bias, rotation, static)  # type: ignore[no-any-return]

    @classmethod
    def weight_only(cls, x: torch.Tensor, qdata: torch.Tensor, params: Params) -> torch.Tensor:
        """Return x W^T with exact activations, without a float copy of the weight."""
        if x.dtype == torch.float64:
            return cls.exact_linear(x, qdata, params)
        return int8_weight_only_linear(x, qdata, cls.scale(params), None, params.get("rotation", 0))

    @classmethod
    def embedding(
        cls, index: torch.Tensor, qdata: torch.Tensor, params: Params, dtype: torch.dtype
    ) -> torch.Tensor | None:
        """Look up rows of integers and dequantize only those: a row scale and a rotation belong to a row."""
        scale = cls.scale(params)
        if scale.numel() != 1 and scale.shape[1] != 1:
            return None
        rows = torch.nn.functional.embedding(index, qdata)
        scales = scale if scale.numel() == 1 else scale[index]
        out = cls.floats(rows, scales, dtype, params.get("rotation", 0))
        smooth = params.get("pre_quant_scale")
        return out if smooth is None else out.mul_(smooth.to(out.dtype))
