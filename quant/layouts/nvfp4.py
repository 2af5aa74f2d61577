"""The layout of ``nvfp4``: e2m1 with an e4m3 scale per 16 columns and one in all."""

from collections.abc import Mapping
from typing import ClassVar

import torch

from ...formats import NVFP4, Format
from ...formats.names import INPUT_SCALE, PRE_QUANT_SCALE, SCALE, WEIGHT
from ...formats.nvfp4 import SCALE_2
from ...kernels import quantize_nvfp4
from ...kernels.packing import pack
from ...kernels.tiled_scales import tiled, untiled
from ..block_grids import FourBitFloatGrid
from ..grid import Grid
from .floats import FloatLayout, SmallFloats
from .weight import Params, Stored, carried, with_extras


class TensorCoreNVFP4Layout(FloatLayout):
    """Two e2m1 values a byte, uint8 [N, K / 2], the even column in the high half; run as floats.

    Parameters: scale float32 [], block_scale float8_e4m3fn in cuBLAS' tiles, orig_shape, and those of
    `WeightLayout`.
    """

    input_top: ClassVar[float] = 448.0 * 6.0

    @classmethod
    def quantize(  # type: ignore[override]  # the format has no choices
        cls,
        tensor: torch.Tensor,
        form: Format | None = None,
        pre_quant_scale: torch.Tensor | None = None,
        input_scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Params]:
        """Round [N, K] to nearest. ValueError for shapes that are no multiples of 16."""
        form = form or NVFP4()
        if why := form.why_not((tensor.shape[0], tensor.shape[1])):
            raise ValueError(f"{form.name}: {why}")
        return super().quantize(tensor, form, pre_quant_scale, input_scale)

    @classmethod
    def grid(cls, form: Format) -> Grid:
        """Return e2m1's values with scales of both kinds."""
        return FourBitFloatGrid()

    @classmethod
    def round(
        cls, tensor: torch.Tensor, form: Format, scale: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Params]:
        """Round [N, K] by one kernel, where at most the scale in all is given; see `WeightLayout.round`."""
        if scale is not None and scale.is_complex():
            return super().round(tensor, form, scale)
        packed, blocks, whole = quantize_nvfp4(tensor, scale)
        params: Params = {"scale": whole, "block_scale": blocks}
        return packed, {**params, "orig_shape": tuple(tensor.shape), "orig_dtype": tensor.dtype}

    @classmethod
    def pack(
        cls, codes: torch.Tensor, scale: torch.Tensor, form: Format, dtype: torch.dtype
    ) -> tuple[torch.Tensor, Params]:
        """Make signs and magnitudes of the codes, and put the blocks' scales in tiles."""
        bits = torch.where(codes < 0, 8 - codes, codes)
        packed = _halves_swapped(pack(bits, 4).view(torch.uint8))
        params: Params = {
            "scale": scale.real[0, 0].clone(),
            "block_scale": tiled(scale.imag.to(torch.float8_e4m3fn)),
        }
        return packed, {**params, "orig_shape": tuple(codes.shape), "orig_dtype": dtype}

    @classmethod
    def form(cls, params: Params) -> Format:
        """Return the format."""
        return with_extras(NVFP4(), params)

    @classmethod
    def load(
        cls, form: Format, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> tuple[torch.Tensor, Params]:
        """Take packed values and scales; those of blocks may be stored as bytes."""
        blocks = tensors[SCALE]
        params: Params = {
            "scale": tensors[SCALE_2].float().reshape(()),
            "block_scale": blocks.view(torch.float8_e4m3fn) if blocks.dtype == torch.uint8 else blocks,
            "orig_shape": form.shape(tuple(tensors[WEIGHT].shape)),
            "orig_dtype": dtype,
        }
        if INPUT_SCALE in form.extra:
            params[INPUT_SCALE] = tensors[INPUT_SCALE].float().reshape(())
        if PRE_QUANT_SCALE in form.extra:
            params[PRE_QUANT_SCALE] = tensors[PRE_QUANT_SCALE].float().flatten()
        return tensors[WEIGHT], params

    @classmethod
    def store(cls, qdata: torch.Tensor, params: Params) -> tuple[Format, Stored]:
        """Return the packed weight, the blocks' scales and the scale in all."""
        own = {WEIGHT: qdata, SCALE: params["block_scale"], SCALE_2: params["scale"]}
        return cls.form(params), {**own, **carried(params)}

    @classmethod
    def scales(cls, qdata: torch.Tensor, params: Params) -> torch.Tensor:
        """Return both scales as the grid takes them, complex [N, K / 16]."""
        blocks = untiled(params["block_scale"], qdata.shape[0], 2 * qdata.shape[1] // NVFP4.block).float()
        return torch.complex(params["scale"].expand(blocks.shape).contiguous(), blocks)

    @classmethod
    def stored(cls, qdata: torch.Tensor, params: Params) -> SmallFloats:
        """Return bytes and both scales."""
        blocks = params["block_scale"].view(torch.uint8)
        return SmallFloats(qdata.view(torch.uint8), "nvfp4", params["scale"], blocks)


def _halves_swapped(packed: torch.Tensor) -> torch.Tensor:
    """Exchange the halves of each byte of uint8."""
    return (packed << 4) | (packed >> 4)
