"""The layout of ``int8_blockwise``: INT8 with one scale per square block."""

from collections.abc import Mapping
from typing import Any

import torch

from ...formats import Format, Int8Blockwise
from ...formats.names import PRE_QUANT_SCALE, SCALE, WEIGHT
from ...kernels import quantize_blockwise
from ..grid import Grid
from .int8 import Int8Layout
from .weight import Params, Stored, carried, given, smoothed, unsmoothed, with_extras


class BlockWiseINT8Layout(Int8Layout):
    """``int8_blockwise``: one scale per square block, [ceil(N / b), ceil(K / b)]. Stock ComfyUI refuses it.

    Parameters: scale float32, block_size, orig_dtype, transposed; pre_quant_scale [K] as in `WeightLayout`.
    """

    @classmethod
    def quantize(  # type: ignore[override]  # a format is one way to say what is wanted, these words another
        cls, tensor: torch.Tensor, block_size: int = 128, pre_quant_scale: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Params]:
        """Round `tensor` [N, K], its columns divided by pre_quant_scale, to nearest.

        block_size: edge of a block, a power of two; ValueError for others.
        """
        q, params = cls.round(smoothed(tensor, pre_quant_scale), Int8Blockwise(block_size=block_size))
        return q, {**params, "orig_dtype": tensor.dtype, **given(pre_quant_scale=pre_quant_scale)}

    @classmethod
    def round(
        cls, tensor: torch.Tensor, form: Format, scale: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Params]:
        """Round [N, K] to nearest in one pass of a kernel; the scales are always the blocks' own."""
        assert isinstance(form, Int8Blockwise)
        q, scale = quantize_blockwise(tensor, form.block_size, form.block_size)
        return q, {"scale": scale, "block_size": form.block_size, "orig_dtype": tensor.dtype}

    @staticmethod
    def dequantize(  # type: ignore[override]
        qdata: torch.Tensor,
        scale: torch.Tensor,
        orig_dtype: torch.dtype,
        block_size: int = 128,
        transposed: bool = False,
        pre_quant_scale: torch.Tensor | None = None,
        full_precision_matrix_mult: bool = False,
    ) -> torch.Tensor:
        """Return q * scale, times pre_quant_scale, as `orig_dtype`."""
        out = unsmoothed(BlockWiseINT8Layout.floats(qdata, scale, orig_dtype), pre_quant_scale)
        return out.t() if transposed else out

    @classmethod
    def requantize_options(cls, params: Params) -> dict[str, Any]:
        """Return the edge of a block and pre_quant_scale."""
        return {"block_size": params.get("block_size", 128), **carried(params)}

    @classmethod
    def view(
        cls, qdata: torch.Tensor, params: Params, shape: tuple[int, ...]
    ) -> tuple[torch.Tensor, Params] | None:
        """Return another shape where one scale serves all."""
        free = params["scale"].numel() == 1 and PRE_QUANT_SCALE not in params
        return (qdata.view(shape), params) if free else None

    @classmethod
    def form(cls, params: Params) -> Format:
        """Return the edge of a block and the extras."""
        return with_extras(Int8Blockwise(block_size=params.get("block_size", 128)), params)

    @classmethod
    def load(
        cls, form: Format, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> tuple[torch.Tensor, Params]:
        """Take int8 [N, K] and the scales of its blocks."""
        assert isinstance(form, Int8Blockwise)
        params: Params = {"scale": tensors[SCALE].float(), "orig_dtype": dtype, "block_size": form.block_size}
        if PRE_QUANT_SCALE in form.extra:
            params[PRE_QUANT_SCALE] = tensors[PRE_QUANT_SCALE].float().flatten()
        return tensors[WEIGHT], params

    @classmethod
    def store(cls, qdata: torch.Tensor, params: Params) -> tuple[Format, Stored]:
        """Return the integers and scales as they are."""
        return cls.form(params), {WEIGHT: qdata, SCALE: params["scale"].float(), **carried(params)}

    @classmethod
    def grid(cls, form: Format) -> Grid:
        """Return the integers -127 to 127 with a scale per block."""
        assert isinstance(form, Int8Blockwise)
        return Grid(rows=form.block_size, columns=form.block_size)

    @classmethod
    def pack(
        cls, codes: torch.Tensor, scale: torch.Tensor, form: Format, dtype: torch.dtype
    ) -> tuple[torch.Tensor, Params]:
        """Keep codes and scales as they are."""
        assert isinstance(form, Int8Blockwise)
        return codes, {"scale": scale, "block_size": form.block_size, "orig_dtype": dtype}
