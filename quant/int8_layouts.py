"""The INT8 layouts of the checkpoint contract."""

from typing import Any, Literal

import torch

from ..kernels import dequantize as dequantize_int8
from ..kernels import quantize_blockwise, quantize_rowwise, quantize_tensorwise
from .layout import QuantizedLayout


def _float(qdata: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, rotation: int = 0) -> torch.Tensor:
    """The op, in float32 first for a dtype that it does not give (float64, after ``.double()``)."""
    direct = dtype in (torch.float32, torch.float16, torch.bfloat16)
    return dequantize_int8(qdata, scale, dtype if direct else torch.float32, rotation).to(dtype)


class TensorWiseINT8Layout(QuantizedLayout):
    """ComfyUI's ``int8_tensorwise``: one scale [] or one a row [N, 1], optionally rotated (ConvRot).

    Parameters: scale float32, rotation (group size or 0), orig_dtype, transposed.
    """

    transposable = True

    @classmethod
    def quantize(
        cls,
        tensor: torch.Tensor,
        scaling: Literal["row", "tensor"] = "row",
        rotation: int = 0,
        scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Round `tensor` [.., K] to nearest.

        scaling: one scale a row (the default: better on every weight) or one in all.
        rotation: ConvRot group, which must divide K; 0 for none. scale: a static scale, saturating.
        """
        if scaling not in ("row", "tensor"):
            raise ValueError(f"scaling must be 'row' or 'tensor', not {scaling!r}")
        if scaling == "row":
            q, scale = quantize_rowwise(tensor, rotation, scale)
        else:
            q, scale = quantize_tensorwise(tensor, scale, rotation)
        return q, {"scale": scale, "rotation": rotation, "orig_dtype": tensor.dtype}

    @staticmethod
    def dequantize(
        qdata: torch.Tensor,
        scale: torch.Tensor,
        orig_dtype: torch.dtype,
        rotation: int = 0,
        transposed: bool = False,
    ) -> torch.Tensor:
        """q * scale, un-rotated, as `orig_dtype`."""
        out = _float(qdata, scale, orig_dtype, rotation)
        return out.t() if transposed else out

    @classmethod
    def requantize_options(cls, params: dict[str, Any]) -> dict[str, Any]:
        scaling = "tensor" if params["scale"].numel() == 1 else "row"
        return {"scaling": scaling, "rotation": params.get("rotation", 0)}


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

    Parameters: scale float32, block_size, orig_dtype, transposed.
    """

    transposable = True

    @classmethod
    def quantize(cls, tensor: torch.Tensor, block_size: int = 128) -> tuple[torch.Tensor, dict[str, Any]]:
        """Round `tensor` [N, K] to nearest; block_size is a power of two."""
        q, scale = quantize_blockwise(tensor, block_size, block_size)
        return q, {"scale": scale, "block_size": block_size, "orig_dtype": tensor.dtype}

    @staticmethod
    def dequantize(
        qdata: torch.Tensor,
        scale: torch.Tensor,
        orig_dtype: torch.dtype,
        block_size: int = 128,
        transposed: bool = False,
    ) -> torch.Tensor:
        """q * scale as `orig_dtype`."""
        out = _float(qdata, scale, orig_dtype)
        return out.t() if transposed else out

    @classmethod
    def requantize_options(cls, params: dict[str, Any]) -> dict[str, Any]:
        return {"block_size": params.get("block_size", 128)}


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
