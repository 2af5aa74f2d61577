"""The INT8 layouts of the checkpoint contract."""

from typing import Any, Literal

import torch

from ..kernels import dequantize as dequantize_int8
from ..kernels import quantize_blockwise, quantize_rowwise, quantize_tensorwise
from .layout import QuantizedLayout

_CARRIED = ("pre_quant_scale", "input_scale")


def _given(**params: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return {k: v for k, v in params.items() if v is not None}


def _kept(params: dict[str, Any]) -> dict[str, Any]:
    return {k: params[k] for k in _CARRIED if k in params}


def _smooth(weight: torch.Tensor, pre_quant_scale: torch.Tensor | None) -> torch.Tensor:
    if pre_quant_scale is None:
        return weight
    return weight.float() / pre_quant_scale.to(device=weight.device, dtype=torch.float32)


def _unsmooth(weight: torch.Tensor, pre_quant_scale: torch.Tensor | None) -> torch.Tensor:
    return weight if pre_quant_scale is None else weight.mul_(pre_quant_scale.to(weight.dtype))


def _float(qdata: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, rotation: int = 0) -> torch.Tensor:
    """The op, in float32 first for a dtype that it does not give (float64, after ``.double()``)."""
    direct = dtype in (torch.float32, torch.float16, torch.bfloat16)
    return dequantize_int8(qdata, scale, dtype if direct else torch.float32, rotation).to(dtype)


class TensorWiseINT8Layout(QuantizedLayout):
    """ComfyUI's ``int8_tensorwise``: one scale [] or one a row [N, 1], optionally rotated (ConvRot).

    Parameters: scale float32, rotation (group size or 0), orig_dtype, transposed; where the checkpoint
    has them, pre_quant_scale [K] (SmoothQuant: the linear multiplies its input by it, so the float
    weight is the stored one times it) and input_scale [] (static activations).
    """

    transposable = True

    @classmethod
    def quantize(
        cls,
        tensor: torch.Tensor,
        scaling: Literal["row", "tensor"] = "row",
        rotation: int = 0,
        scale: torch.Tensor | None = None,
        pre_quant_scale: torch.Tensor | None = None,
        input_scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Round `tensor` [.., K] to nearest.

        scaling: one scale a row (the default: better on every weight) or one in all.
        rotation: ConvRot group, which must divide K; 0 for none. scale: a static scale, saturating.
        pre_quant_scale [K]: the columns are divided by it first. input_scale: only carried along.
        """
        if scaling not in ("row", "tensor"):
            raise ValueError(f"scaling must be 'row' or 'tensor', not {scaling!r}")
        smooth = _smooth(tensor, pre_quant_scale)
        if scaling == "row":
            q, scale = quantize_rowwise(smooth, rotation, scale)
        else:
            q, scale = quantize_tensorwise(smooth, scale, rotation)
        extra = _given(pre_quant_scale=pre_quant_scale, input_scale=input_scale)
        return q, {"scale": scale, "rotation": rotation, "orig_dtype": tensor.dtype, **extra}

    @staticmethod
    def dequantize(
        qdata: torch.Tensor,
        scale: torch.Tensor,
        orig_dtype: torch.dtype,
        rotation: int = 0,
        transposed: bool = False,
        pre_quant_scale: torch.Tensor | None = None,
        input_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """q * scale, un-rotated, times pre_quant_scale, as `orig_dtype`."""
        out = _unsmooth(_float(qdata, scale, orig_dtype, rotation), pre_quant_scale)
        return out.t() if transposed else out

    @classmethod
    def requantize_options(cls, params: dict[str, Any]) -> dict[str, Any]:
        scaling = "tensor" if params["scale"].numel() == 1 else "row"
        return {"scaling": scaling, "rotation": params.get("rotation", 0), **_kept(params)}


class AxisWiseINT8Layout(QuantizedLayout):
    """Per-row scales stored as [N], as some other tools write them. Never rotated."""

    transposable = True

    @classmethod
    def quantize(cls, tensor: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
        """Round `tensor` [N, K] to nearest with one scale a row."""
        q, scale = quantize_rowwise(tensor)
        return q, {"scale": scale.squeeze(-1), "orig_dtype": tensor.dtype}

    @staticmethod
    def dequantize(
        qdata: torch.Tensor, scale: torch.Tensor, orig_dtype: torch.dtype, transposed: bool = False
    ) -> torch.Tensor:
        """q * scale as `orig_dtype`."""
        out = _float(qdata, scale.unsqueeze(-1), orig_dtype)
        return out.t() if transposed else out


class BlockWiseINT8Layout(QuantizedLayout):
    """``int8_blockwise``: one scale a square block, [ceil(N / b), ceil(K / b)]. Stock ComfyUI refuses it.

    Parameters: scale float32, block_size, orig_dtype, transposed; pre_quant_scale [K] as above.
    """

    transposable = True

    @classmethod
    def quantize(
        cls, tensor: torch.Tensor, block_size: int = 128, pre_quant_scale: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Round `tensor` [N, K], its columns divided by pre_quant_scale, to nearest.

        block_size is a power of two.
        """
        q, scale = quantize_blockwise(_smooth(tensor, pre_quant_scale), block_size, block_size)
        extra = _given(pre_quant_scale=pre_quant_scale)
        return q, {"scale": scale, "block_size": block_size, "orig_dtype": tensor.dtype, **extra}

    @staticmethod
    def dequantize(
        qdata: torch.Tensor,
        scale: torch.Tensor,
        orig_dtype: torch.dtype,
        block_size: int = 128,
        transposed: bool = False,
        pre_quant_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """q * scale, times pre_quant_scale, as `orig_dtype`."""
        out = _unsmooth(_float(qdata, scale, orig_dtype), pre_quant_scale)
        return out.t() if transposed else out

    @classmethod
    def requantize_options(cls, params: dict[str, Any]) -> dict[str, Any]:
        return {"block_size": params.get("block_size", 128), **_kept(params)}


QUANT_ALGOS: dict[str, dict[str, Any]] = {
    "int8_tensorwise": {
        "storage_t": torch.int8,
        "parameters": {"weight_scale", "input_scale"},
        "comfy_tensor_layout": "TensorWiseINT8Layout",
    },
    "int8_blockwise": {
        "storage_t": torch.int8,
        "parameters": {"weight_scale", "input_scale"},
        "comfy_tensor_layout": "BlockWiseINT8Layout",
        "group_size": 128,
    },
}
"""Checkpoint formats by the name in ``comfy_quant``, in the shape of ComfyUI's table of that name."""
