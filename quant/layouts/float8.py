"""The layout of ``float8_e4m3fn`` and ``float8_e5m2``: eight-bit floats with one scale in all, or none."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch

from ...formats import FORMATS, Float8E4M3, Format
from ...formats.float8 import Float8
from ...formats.names import INPUT_SCALE, PRE_QUANT_SCALE, SCALE, WEIGHT
from ..grid import Grid
from ..level_grid import FloatGrid, to_bits
from .floats import FloatLayout, SmallFloats
from .weight import Params, Stored, carried, with_extras


class TensorCoreFP8Layout(FloatLayout):
    """FP8 weights as they are stored, [N, K] float8_e4m3fn or float8_e5m2.

    Parameters: scale float32 [], [N, 1] or None, format (the name on disk), and those of `WeightLayout`.
    """

    input_top: ClassVar[float] = torch.finfo(torch.float8_e4m3fn).max

    @classmethod
    def quantize(  # type: ignore[override]  # comfy-kitchen's words, which users of the layout know
        cls,
        tensor: torch.Tensor,
        form: Format | None = None,
        pre_quant_scale: torch.Tensor | None = None,
        input_scale: torch.Tensor | None = None,
        dtype: torch.dtype = torch.float8_e4m3fn,
    ) -> tuple[torch.Tensor, Params]:
        """Round [N, K] to nearest with one scale, which spreads the dtype over the largest weight.

        dtype: float8_e4m3fn or float8_e5m2, where no `form` says so. ValueError for another.
        """
        return super().quantize(tensor, form or _format_of(dtype)(), pre_quant_scale, input_scale)

    @classmethod
    def grid(cls, form: Format) -> Grid:
        """Return the dtype's finite values with one scale, or with one per row."""
        assert isinstance(form, Float8)
        return FloatGrid(rows=int(form.row_scales), dtype=_dtype(form))

    @classmethod
    def pack(
        cls, codes: torch.Tensor, scale: torch.Tensor, form: Format, dtype: torch.dtype
    ) -> tuple[torch.Tensor, Params]:
        """Make FP8 of the codes, and one scale in all as []."""
        assert isinstance(form, Float8)
        scale = scale if form.row_scales else scale.reshape(())
        return to_bits(codes).view(_dtype(form)), {"scale": scale, "format": form.name, "orig_dtype": dtype}

    @classmethod
    def form(cls, params: Params) -> Float8:
        """Return which FP8 it is and how it is scaled."""
        scale, found = params.get("scale"), FORMATS[params.get("format", Float8E4M3.name)]
        assert issubclass(found, Float8)
        form = found(scaled=scale is not None, row_scales=scale is not None and scale.dim() == 2)
        return with_extras(form, params)  # type: ignore[return-value]  # the same class

    @classmethod
    def requantize_options(cls, params: Params) -> dict[str, Any]:
        """Return the format, with a scale: changed weights need one."""
        options = super().requantize_options(params)
        return {**options, "form": replace(options["form"], scaled=True)}

    @classmethod
    def load(
        cls, form: Format, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> tuple[torch.Tensor, Params]:
        """Take FP8 [N, K] with one scale, one per row, or none."""
        params: Params = {"orig_dtype": dtype, "format": form.name}
        if SCALE in tensors:
            scale = tensors[SCALE].float()
            rows = isinstance(form, Float8) and form.row_scales
            params["scale"] = scale.reshape(-1, 1) if rows else scale.reshape(())
        if PRE_QUANT_SCALE in form.extra:
            params[PRE_QUANT_SCALE] = tensors[PRE_QUANT_SCALE].float().flatten()
        if INPUT_SCALE in form.extra:
            params[INPUT_SCALE] = tensors[INPUT_SCALE].float().reshape(())
        return tensors[WEIGHT], params

    @classmethod
    def store(cls, qdata: torch.Tensor, params: Params) -> tuple[Format, Stored]:
        """Return the weight, and its scale where it has one."""
        scale = params.get("scale")
        own = {} if scale is None else {SCALE: scale.float()}
        return cls.form(params), {WEIGHT: qdata, **own, **carried(params)}

    @classmethod
    def scales(cls, qdata: torch.Tensor, params: Params) -> torch.Tensor:
        """Return the scale as the grid takes it, [1, 1] or [N, 1]; one where there is none."""
        scale = params.get("scale")
        found = torch.ones(1, device=qdata.device) if scale is None else scale.float()
        return found.reshape(-1, 1)

    @classmethod
    def stored(cls, qdata: torch.Tensor, params: Params) -> SmallFloats:
        """Return bytes, kind and scale."""
        kind = "e5m2" if qdata.dtype == torch.float8_e5m2 else "e4m3"
        return SmallFloats(qdata.view(torch.uint8), kind, params.get("scale"), None)

    @classmethod
    def nearest(cls, work: torch.Tensor, qdata: torch.Tensor, params: Params) -> torch.Tensor:
        """Round `work` to the FP8 type, saturated."""
        scale, most = params.get("scale"), torch.finfo(qdata.dtype).max
        out = work if scale is None else work / scale
        out = out.clamp(-most, most).to(qdata.dtype).float()
        return out if scale is None else out.mul_(scale)


def _dtype(form: Format) -> torch.dtype:
    return torch.float8_e5m2 if form.weight_dtype == "F8_E5M2" else torch.float8_e4m3fn


def _format_of(dtype: torch.dtype) -> type[Float8]:
    for found in FORMATS.values():
        if issubclass(found, Float8) and str(dtype) == f"torch.{found.name}":
            return found
    raise ValueError(f"dtype must be float8_e4m3fn or float8_e5m2, not {dtype}")
