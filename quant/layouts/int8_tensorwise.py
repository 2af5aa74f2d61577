"""Layouts of ``int8_tensorwise``: INT8 with one scale per row or in all, optionally rotated."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from ...formats import Format, Int8Tensorwise
from ...formats.names import INPUT_SCALE, PRE_QUANT_SCALE, SCALE, WEIGHT
from ...kernels import quantize_rowwise, quantize_tensorwise
from ..grid import Grid
from .int8 import Int8Layout
from .weight import Params, Stored, carried, given, smoothed, unsmoothed, with_extras


class TensorWiseINT8Layout(Int8Layout):
    """ComfyUI's ``int8_tensorwise``: one scale [] or one per row [N, 1], optionally rotated (ConvRot).

    Parameters: scale float32, rotation (group size or 0), orig_dtype, and those of `WeightLayout`.
    """

    @classmethod
    def quantize(  # type: ignore[override]  # a format is one way to say what is wanted, these words another
        cls,
        tensor: torch.Tensor,
        scaling: Literal["row", "tensor"] = "row",
        rotation: int = 0,
        scale: torch.Tensor | None = None,
        pre_quant_scale: torch.Tensor | None = None,
        input_scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Params]:
        """Round `tensor` [.., K] to nearest.

        scaling: one scale per row (the default: better on every weight) or one in all.
        rotation: ConvRot group, which must divide K; 0 for none. scale: a static scale, saturating.
        pre_quant_scale [K]: the columns are divided by it first. input_scale: only carried along.
        ValueError for another scaling, or a rotation that does not divide K.
        """
        if scaling not in Int8Tensorwise.granularities:
            known = " or ".join(map(repr, Int8Tensorwise.granularities))
            raise ValueError(f"scaling must be {known}, not {scaling!r}")
        form = Int8Tensorwise(granularity=scaling, rotation=rotation)
        q, params = cls.round(smoothed(tensor, pre_quant_scale), form, scale)
        extra = given(pre_quant_scale=pre_quant_scale, input_scale=input_scale)
        return q, {**params, "orig_dtype": tensor.dtype, **extra}

    @classmethod
    def round(
        cls, tensor: torch.Tensor, form: Format, scale: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Params]:
        """Round [.., K] to nearest in one pass of a kernel."""
        assert isinstance(form, Int8Tensorwise)
        if form.granularity == "row":
            q, scale = quantize_rowwise(tensor, form.rotation, scale)
        else:
            q, scale = quantize_tensorwise(
                tensor, scale if scale is None else scale.reshape(()), form.rotation
            )
        return q, {"scale": scale, "rotation": form.rotation, "orig_dtype": tensor.dtype}

    @classmethod
    def requantize_options(cls, params: Params) -> dict[str, Any]:
        """Return granularity, rotation and the activation scales."""
        form = cls.form(params)
        return {"scaling": form.granularity, "rotation": form.rotation, **carried(params)}

    @staticmethod
    def dequantize(  # type: ignore[override]
        qdata: torch.Tensor,
        scale: torch.Tensor,
        orig_dtype: torch.dtype,
        rotation: int = 0,
        transposed: bool = False,
        pre_quant_scale: torch.Tensor | None = None,
        input_scale: torch.Tensor | None = None,
        full_precision_matrix_mult: bool = False,
    ) -> torch.Tensor:
        """Return q * scale, un-rotated, times pre_quant_scale, as `orig_dtype`."""
        dense = TensorWiseINT8Layout.floats(qdata, scale, orig_dtype, rotation)
        out = unsmoothed(dense, pre_quant_scale)
        return out.t() if transposed else out

    @classmethod
    def form(cls, params: Params) -> Int8Tensorwise:
        """Return granularity, by the number of scales, rotation and extras."""
        granularity: Literal["row", "tensor"] = "tensor" if params["scale"].numel() == 1 else "row"
        form = Int8Tensorwise(granularity=granularity, rotation=params.get("rotation", 0))
        return with_extras(form, params)  # type: ignore[return-value]  # the same class

    @classmethod
    def load(
        cls, form: Format, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> tuple[torch.Tensor, Params]:
        """Take int8 [N, K] and scales of any float dtype, stored as [N, 1], [N], [1, N] or one element."""
        scale = tensors[SCALE].float()
        params: Params = {"scale": scale.reshape(()) if scale.numel() == 1 else scale.reshape(-1, 1)}
        params |= {"orig_dtype": dtype, "rotation": form.rotation}
        if INPUT_SCALE in form.extra:
            params[INPUT_SCALE] = tensors[INPUT_SCALE].float().reshape(())
        if PRE_QUANT_SCALE in form.extra:
            params[PRE_QUANT_SCALE] = tensors[PRE_QUANT_SCALE].float().flatten()
        return tensors[WEIGHT], params

    @classmethod
    def store(cls, qdata: torch.Tensor, params: Params) -> tuple[Format, Stored]:
        """Return the scale as [N, 1] or [1, 1]: the shapes that load everywhere."""
        scale = params["scale"].float().reshape(-1, 1)
        return cls.form(params), {WEIGHT: qdata, SCALE: scale, **carried(params)}

    @classmethod
    def grid(cls, form: Format) -> Grid:
        """Return the integers -127 to 127 with the format's scales."""
        assert isinstance(form, Int8Tensorwise)
        return Grid(rows=1 if form.granularity == "row" else 0, rotation=form.rotation)

    @classmethod
    def pack(
        cls, codes: torch.Tensor, scale: torch.Tensor, form: Format, dtype: torch.dtype
    ) -> tuple[torch.Tensor, Params]:
        """Keep the codes as they are, and one scale in all as []."""
        assert isinstance(form, Int8Tensorwise)
        scale = scale.reshape(()) if form.granularity == "tensor" else scale
        return codes, {"scale": scale, "rotation": form.rotation, "orig_dtype": dtype}

    @classmethod
    def view(
        cls, qdata: torch.Tensor, params: Params, shape: tuple[int, ...]
    ) -> tuple[torch.Tensor, Params] | None:
        """Return the storage in another shape: who keeps the last axis keeps rows and rotation groups."""
        scale = params["scale"]
        free = scale.numel() == 1 and not params.get("rotation") and "pre_quant_scale" not in params
        if not (free or shape[-1:] == qdata.shape[-1:]):
            return None
        rows = scale if scale.numel() == 1 else scale.view(*shape[:-1], 1)
        return qdata.view(shape), {**params, "scale": rows}

    @classmethod
    def join_rows(cls, parts: Sequence[tuple[torch.Tensor, Params]]) -> tuple[torch.Tensor, Params]:
        """Join; one scale per part becomes one per row. A part of one row is both."""
        forms = {replace(cls.form(params), granularity="row") for _, params in parts}
        shared = [carried(params) for _, params in parts]
        same = all(torch.equal(t, other[s]) for other in shared for s, t in shared[0].items() if s in other)
        if len(forms) > 1 or not same:
            raise ValueError("quantized in different ways")
        scales = [params["scale"].reshape(-1, 1).expand(q.shape[0], 1) for q, params in parts]
        return torch.cat([q for q, _ in parts]), {**parts[0][1], "scale": torch.cat(scales)}


class AxisWiseINT8Layout(TensorWiseINT8Layout):
    """Per-row scales stored as [N], as some other tools write them. Never rotated."""

    @classmethod
    def quantize(cls, tensor: torch.Tensor) -> tuple[torch.Tensor, Params]:  # type: ignore[override]
        """Round `tensor` [N, K] to nearest with one scale per row."""
        q, scale = quantize_rowwise(tensor)
        return q, {"scale": scale.squeeze(-1), "orig_dtype": tensor.dtype}

    @staticmethod
    def dequantize(  # type: ignore[override]
        qdata: torch.Tensor, scale: torch.Tensor, orig_dtype: torch.dtype, transposed: bool = False
    ) -> torch.Tensor:
        """Return q * scale as `orig_dtype`."""
        out = TensorWiseINT8Layout.floats(qdata, scale.unsqueeze(-1), orig_dtype)
        return out.t() if transposed else out

    @classmethod
    def requantize_options(cls, params: Params) -> dict[str, Any]:
        """Return nothing: there is one way to be this layout."""
        return {}

    @classmethod
    def scale(cls, params: Params) -> torch.Tensor:
        """Return the scale as [N, 1]."""
        scale: torch.Tensor = params["scale"]
        return scale.unsqueeze(-1)

    @classmethod
    def view(
        cls, qdata: torch.Tensor, params: Params, shape: tuple[int, ...]
    ) -> tuple[torch.Tensor, Params] | None:
        """Return None unless one scale serves all: [N] says nothing of rows in another shape."""
        return super().view(qdata, params, shape) if params["scale"].numel() == 1 else None
