"""The layout of ``convrot_w4a4``: 4 bits with a scale per row, rotated (int4 rows)."""

from collections.abc import Mapping

import torch

from ...formats import ConvRotW4A4, Format
from ...formats.convrot import largest_group
from ...formats.names import INPUT_SCALE, PRE_QUANT_SCALE, SCALE, WEIGHT
from ...kernels import quantize_int4
from ...kernels.packing import pack
from ..clipped_grid import ClippedGrid
from ..grid import Grid
from .base import LAYOUTS
from .packed import PackedLayout
from .weight import Params, Stored, carried, with_extras


class TensorCoreConvRotW4A4Layout(PackedLayout):
    """Codes -7 to 7, int8 [N, K / 2], run as the INT8 product with activations of eight bits.

    Parameters: scale float32 [N], linear_dtype, rotation, orig_shape, and those of `WeightLayout`.
    """

    @classmethod
    def quantize(  # type: ignore[override]  # comfy-kitchen's words, which users of the layout know
        cls,
        tensor: torch.Tensor,
        form: Format | None = None,
        pre_quant_scale: torch.Tensor | None = None,
        input_scale: torch.Tensor | None = None,
        convrot_groupsize: int | None = None,
        linear_dtype: str = "int8",
    ) -> tuple[torch.Tensor, Params]:
        """Round [N, K] to nearest with the scales that lose least.

        convrot_groupsize (None: the largest of 256 and 64 that divides K) and linear_dtype count where no
        `form` is given. ValueError for a K that the format cannot have.
        """
        if form is None:
            group = convrot_groupsize or largest_group(tensor.shape[1])
            form = ConvRotW4A4(rotation=group, linear_dtype=linear_dtype)
        if why := form.why_not((tensor.shape[0], tensor.shape[1])):
            raise ValueError(f"{form.name}: {why}")
        return super().quantize(tensor, form, pre_quant_scale, input_scale)

    @classmethod
    def grid(cls, form: Format) -> Grid:
        """Return the integers -7 to 7 with a searched scale per row."""
        return ClippedGrid(rotation=form.rotation)

    @classmethod
    def round(
        cls, tensor: torch.Tensor, form: Format, scale: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Params]:
        """Round [N, K] by one kernel, where no `scale` is given; see `WeightLayout.round`."""
        if scale is not None:
            return super().round(tensor, form, scale)
        q, found = quantize_int4(tensor, form.rotation)
        return q, cls._params(found, form, tuple(tensor.shape), tensor.dtype)

    @classmethod
    def pack(
        cls, codes: torch.Tensor, scale: torch.Tensor, form: Format, dtype: torch.dtype
    ) -> tuple[torch.Tensor, Params]:
        """Pack the codes two to a byte."""
        return pack(codes, 4), cls._params(scale, form, tuple(codes.shape), dtype)

    @classmethod
    def _params(cls, scale: torch.Tensor, form: Format, shape: tuple[int, ...], dtype: torch.dtype) -> Params:
        assert isinstance(form, ConvRotW4A4)
        params: Params = {"scale": scale.flatten(), "linear_dtype": form.linear_dtype}
        return params | {"rotation": form.rotation, "orig_shape": shape, "orig_dtype": dtype}

    @classmethod
    def form(cls, params: Params) -> Format:
        """Return rotation and the dtype of activations."""
        kind = params.get("linear_dtype", "int8")
        return with_extras(ConvRotW4A4(rotation=params["rotation"], linear_dtype=kind), params)

    @classmethod
    def load(
        cls, form: Format, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> tuple[torch.Tensor, Params]:
        """Take packed codes and scales [N] or [N, 1]."""
        assert isinstance(form, ConvRotW4A4)
        params: Params = {"scale": tensors[SCALE].float().flatten(), "linear_dtype": form.linear_dtype}
        params |= {"rotation": form.rotation, "orig_dtype": dtype}
        params["orig_shape"] = form.shape(tuple(tensors[WEIGHT].shape))
        if INPUT_SCALE in form.extra:
            params[INPUT_SCALE] = tensors[INPUT_SCALE].float().reshape(())
        if PRE_QUANT_SCALE in form.extra:
            params[PRE_QUANT_SCALE] = tensors[PRE_QUANT_SCALE].float().flatten()
        return tensors[WEIGHT], params

    @classmethod
    def store(cls, qdata: torch.Tensor, params: Params) -> tuple[Format, Stored]:
        """Return the packed weight and its scales [N]."""
        return cls.form(params), {WEIGHT: qdata, SCALE: params["scale"], **carried(params)}

    @classmethod
    def row_scale(cls, params: Params) -> torch.Tensor:
        """Return the scale per row, float32 [N, 1]."""
        scale: torch.Tensor = params["scale"]
        return scale.unsqueeze(1)


LAYOUTS["ConvRotW4A4Layout"] = TensorCoreConvRotW4A4Layout
