"""The layout of ``mxfp8``: e4m3 with a power of two per 32 columns."""

from collections.abc import Mapping

import torch

from ...formats import MXFP8, Format
from ...formats.names import INPUT_SCALE, PRE_QUANT_SCALE, SCALE, WEIGHT
from ...kernels import quantize_mxfp8
from ...kernels.tiled_scales import tiled, untiled
from ..block_grids import PowerGrid
from ..grid import Grid
from ..level_grid import to_bits
from .floats import FloatLayout, SmallFloats
from .weight import Params, Stored, carried, with_extras


class TensorCoreMXFP8Layout(FloatLayout):
    """Float8_e4m3fn [N, K]; scale float8_e8m0fnu in cuBLAS' tiles, w = value x 2^(scale - 127); run as
    floats.

    Parameters: scale, and those of `WeightLayout`.
    """

    @classmethod
    def quantize(  # type: ignore[override]  # the format has no choices
        cls,
        tensor: torch.Tensor,
        form: Format | None = None,
        pre_quant_scale: torch.Tensor | None = None,
        input_scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Params]:
        """Round [N, K] to nearest. ValueError for shapes that are no multiples of 32."""
        form = form or MXFP8()
        if why := form.why_not((tensor.shape[0], tensor.shape[1])):
            raise ValueError(f"{form.name}: {why}")
        return super().quantize(tensor, form, pre_quant_scale, input_scale)

    @classmethod
    def grid(cls, form: Format) -> Grid:
        """Return e4m3's values with powers of two."""
        return PowerGrid()

    @classmethod
    def round(
        cls, tensor: torch.Tensor, form: Format, scale: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Params]:
        """Round [N, K] by one kernel, where no `scale` is given; see `WeightLayout.round`."""
        if scale is not None:
            return super().round(tensor, form, scale)
        q, found = quantize_mxfp8(tensor)
        return q, {"scale": found, "orig_dtype": tensor.dtype}

    @classmethod
    def pack(
        cls, codes: torch.Tensor, scale: torch.Tensor, form: Format, dtype: torch.dtype
    ) -> tuple[torch.Tensor, Params]:
        """Make FP8 of the codes and exponents of the scales, in tiles; NaN and Inf become exponent 255."""
        powers = torch.log2(scale).round() + 127
        exponents = torch.where(torch.isfinite(scale), powers, scale.new_full((), 255))
        return to_bits(codes).view(torch.float8_e4m3fn), {
            "scale": tiled(exponents.to(torch.uint8)).view(torch.float8_e8m0fnu),
            "orig_dtype": dtype,
        }

    @classmethod
    def form(cls, params: Params) -> Format:
        """Return the format."""
        return with_extras(MXFP8(), params)

    @classmethod
    def load(
        cls, form: Format, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> tuple[torch.Tensor, Params]:
        """Take FP8 and scales, which may be stored as bytes."""
        params: Params = {"scale": tensors[SCALE].view(torch.float8_e8m0fnu), "orig_dtype": dtype}
        if INPUT_SCALE in form.extra:
            params[INPUT_SCALE] = tensors[INPUT_SCALE].float().reshape(())
        if PRE_QUANT_SCALE in form.extra:
            params[PRE_QUANT_SCALE] = tensors[PRE_QUANT_SCALE].float().flatten()
        return tensors[WEIGHT], params

    @classmethod
    def store(cls, qdata: torch.Tensor, params: Params) -> tuple[Format, Stored]:
        """Return the weight and its scales as float8_e8m0fnu."""
        return cls.form(params), {WEIGHT: qdata, SCALE: params["scale"], **carried(params)}

    @classmethod
    def scales(cls, qdata: torch.Tensor, params: Params) -> torch.Tensor:
        """Return the blocks' powers, float32 [N, K / 32]; a stored 0 counts as zero, 255 is NaN."""
        n, k = qdata.shape
        raw = untiled(params["scale"].view(torch.uint8), n, k // MXFP8.block).float()
        powers = torch.where(raw == 0, 0.0, torch.exp2(raw - 127))
        return torch.where(raw == 255, float("nan"), powers)

    @classmethod
    def stored(cls, qdata: torch.Tensor, params: Params) -> SmallFloats:
        """Return bytes and the blocks' powers."""
        return SmallFloats(qdata.view(torch.uint8), "mxfp8", None, params["scale"].view(torch.uint8))
