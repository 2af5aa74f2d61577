"""What layouts of small floats share: FP8, MXFP8 and NVFP4 are multiplied by `kernels.float_linear`."""

from typing import Any, ClassVar, NamedTuple

import torch

from ...formats.names import FULL_PRECISION, PRE_QUANT_SCALE
from ...kernels.floats import dequantize_floats
from .weight import Params, WeightLayout

ops = torch.ops.convert_to_quant


class SmallFloats(NamedTuple):
    """A weight as `kernels.dequantize_floats` takes it: bytes, kind, scale and scales of blocks (bytes)."""

    q: torch.Tensor
    kind: str
    scale: torch.Tensor | None
    block_scale: torch.Tensor | None


class FloatLayout(WeightLayout):
    """Weights of small floats; a layout defines `stored`, beside what `WeightLayout` asks for."""

    quantizes_activations: ClassVar[bool] = False

    @classmethod
    def stored(cls, qdata: torch.Tensor, params: Params) -> SmallFloats:
        """Return the weight as the kernels take it."""
        raise TypeError(f"{cls.__name__} must define stored(qdata, params)")

    @classmethod
    def values(cls, qdata: torch.Tensor, params: Params) -> torch.Tensor:
        """Return the floats times their scales."""
        return dequantize_floats(*cls.stored(qdata, params))

    @classmethod
    def dequantize(
        cls, qdata: torch.Tensor, *, orig_dtype: torch.dtype, transposed: bool = False, **params: Any
    ) -> torch.Tensor:
        """Return the float weight, in one pass where no pre_quant_scale asks for a second."""
        if params.get(PRE_QUANT_SCALE) is not None:
            return super().dequantize(qdata, orig_dtype=orig_dtype, transposed=transposed, **params)
        out = dequantize_floats(*cls.stored(qdata, params), orig_dtype)
        return out.t() if transposed else out

    @classmethod
    def linear(
        cls, x: torch.Tensor, qdata: torch.Tensor, params: Params, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the product, of FP8 activations where the device has it and the layer asks for no more.

        Differentiable in x where wanted.
        """
        if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
            return cls.exact_linear(x, qdata, params, bias)
        exact, static = bool(params.get(FULL_PRECISION)), params.get("input_scale")
        return ops.float_linear(  # type: ignore[no-any-return]
            x, *cls.stored(qdata, params), bias, static, exact
        )

    @classmethod
    def weight_only(cls, x: torch.Tensor, qdata: torch.Tensor, params: Params) -> torch.Tensor:
        """Return x W^T with exact activations."""
        return ops.float_linear(  # type: ignore[no-any-return]
            x, *cls.stored(qdata, params), None, None, True
        )
