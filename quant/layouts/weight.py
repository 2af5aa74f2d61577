"""Layouts of checkpoint formats: what linear, saving, splitting, LoRA and the algorithms need of one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from ...files.dtypes import dtype_name
from ...formats import CheckpointError, Format, StoredTensor, Tensors
from ...formats.names import FULL_PRECISION, INPUT_SCALE, PRE_QUANT_SCALE, WEIGHT
from ...kernels import rotate
from ...kernels.rotation import float_chunks
from ...kernels.scales import QMAX, absmax_rows
from ..grid import Grid
from .base import LAYOUTS, QuantizedLayout

Params = dict[str, Any]
Stored = dict[str, torch.Tensor]
"""A layer's tensors by suffix, ``comfy_quant`` aside."""


class WeightLayout(QuantizedLayout):
    """Base of layouts that hold the weights [N, K] of a `Format`.

    A new one defines `form`, `load`, `store`, `values`, `grid` and `pack`, and gets everything else from
    here; what it can do faster it overrides. Parameters: what `load` makes, with orig_dtype, orig_shape
    [N, K] where rows are packed, and transposed; where the checkpoint has it, pre_quant_scale [K] (the input
    of the linear is multiplied by it, so the float weight is the stored one times it), input_scale [] and
    full_precision_matrix_mult, where it asks for float products.
    """

    quantizes_activations: ClassVar[bool] = False
    """Whether `linear` rounds its input too (W8A8)."""

    input_top: ClassVar[float] = QMAX
    """What a static activation scale spreads over the largest input."""

    @classmethod
    def load(
        cls, form: Format, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> tuple[torch.Tensor, Params]:
        """Return (qdata, params) of a layer stored as `form`, in its tensors' memory where it can be.

        tensors: by suffix, as `Format.stored` shapes them or as the format reads them besides, on one device.
        dtype: what the weight answers with when it is made float.
        """
        raise TypeError(f"{cls.__name__} must define load(form, tensors, dtype)")

    @classmethod
    def store(cls, qdata: torch.Tensor, params: Params) -> tuple[Format, Stored]:
        """Return the format and the tensors by suffix, in the dtypes and shapes of `Format.stored`."""
        raise TypeError(f"{cls.__name__} must define store(qdata, params)")

    @classmethod
    def values(cls, qdata: torch.Tensor, params: Params) -> torch.Tensor:
        """Return float32 [N, K] as stored: still rotated, and not multiplied by pre_quant_scale."""
        raise TypeError(f"{cls.__name__} must define values(qdata, params)")

    @classmethod
    def grid(cls, form: Format) -> Grid:
        """Return what an algorithm rounds to."""
        raise TypeError(f"{cls.__name__} must define grid(form)")

    @classmethod
    def pack(
        cls, codes: torch.Tensor, scale: torch.Tensor, form: Format, dtype: torch.dtype
    ) -> tuple[torch.Tensor, Params]:
        """Return (qdata, params) of int8 codes [N, K] and scales in the grid's `scale_shape`.

        dtype: as in `load`.
        """
        raise TypeError(f"{cls.__name__} must define pack(codes, scale, form, dtype)")

    @classmethod
    def round(
        cls, tensor: torch.Tensor, form: Format, scale: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Params]:
        """Round [N, K] to nearest, rotated first where `form` is; return (qdata, params).

        scale: in the grid's `scale_shape`, None for the grid's own; float32 [] for `Grid.scale_in_all`, where
        there is one. Rows are taken a cache-sized part at a time.
        """
        grid, (n, k) = cls.grid(form), tensor.shape
        codes = torch.empty(n, k, dtype=torch.int8, device=tensor.device)
        if scale is None and not grid.rows:
            parts = float_chunks(tensor, grid.rotation)
            scale = grid.scale_from(torch.cat([grid.peaks(work) for _, work in parts]).amax(0, keepdim=True))
        peak = None
        if scale is None and grid.wants_peak:
            parts = float_chunks(tensor, grid.rotation)
            peak = torch.stack([absmax_rows(work).amax() for _, work in parts]).amax()
        found = []
        for part, work in float_chunks(tensor, grid.rotation, max(grid.rows, 1)):
            if scale is None:
                found.append(grid.fit(work, None, peak))
                view = grid.view(found[-1], slice(0, work.shape[0]), k)
            else:
                view = grid.view(scale, part, k)
            codes[part] = grid.round(work, view)
        return cls.pack(codes, torch.cat(found) if scale is None else scale, form, tensor.dtype)

    @classmethod
    def scales(cls, qdata: torch.Tensor, params: Params) -> torch.Tensor:
        """Return the scales of a weight as its grid takes them, float32 in `scale_shape`."""
        form = cls.form(params)
        scale: torch.Tensor = params["scale"]
        return scale.float().reshape(cls.grid(form).scale_shape(form.shape(tuple(qdata.shape))))

    @classmethod
    def nearest(cls, work: torch.Tensor, qdata: torch.Tensor, params: Params) -> torch.Tensor:
        """Return the values nearest to float32 rows `work` [n, K] that other codes with these scales allow.

        In the space of `values`. It is what an honest rounding of `work` makes: a verification measures by
        it, in every format. (qdata, params): the same rows as they are stored.
        """
        grid = cls.grid(cls.form(params))
        scale = grid.view(cls.scales(qdata, params), slice(0, work.shape[0]), work.shape[1])
        return grid.values(grid.round(work, scale), scale)

    @classmethod
    def quantize(
        cls,
        tensor: torch.Tensor,
        form: Format | None = None,
        pre_quant_scale: torch.Tensor | None = None,
        input_scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Params]:  # type: ignore[override]
        """Round [N, K] to nearest as `form`; return (qdata, params). ValueError without a format.

        pre_quant_scale: float32 [K]; the columns are divided by it first. input_scale: only carried along.
        """
        if form is None:
            raise ValueError(f"{cls.__name__}: give the format to quantize to as form=...")
        q, params = cls.round(smoothed(tensor, pre_quant_scale), form)
        return q, {
            **params,
            "orig_dtype": tensor.dtype,
            **given(pre_quant_scale=pre_quant_scale, input_scale=input_scale),
        }

    @classmethod
    def dequantize(
        cls, qdata: torch.Tensor, *, orig_dtype: torch.dtype, transposed: bool = False, **params: Any
    ) -> torch.Tensor:  # type: ignore[override]
        """Return the float weight: `values`, un-rotated, times pre_quant_scale, as `orig_dtype`."""
        out, rotation = cls.values(qdata, params), params.get("rotation", 0)
        out = rotate(out, rotation) if rotation else out  # the matrix is symmetric: its own inverse
        out = unsmoothed(out, params.get(PRE_QUANT_SCALE)).to(orig_dtype)
        return out.t() if transposed else out

    @classmethod
    def requantize_options(cls, params: Params) -> dict[str, Any]:
        """Return the format and the activation scales, which a change of the weight leaves alone."""
        return {"form": cls.form(params), **carried(params)}

    @classmethod
    def form(cls, params: Params) -> Format:
        """Return the format that the parameters describe."""
        raise TypeError(f"{cls.__name__} must define form(params)")

    @classmethod
    def linear(
        cls, x: torch.Tensor, qdata: torch.Tensor, params: Params, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Return x W^T + bias in x's dtype, [.., K] -> [.., N]; bias [N] or None.

        x is multiplied by pre_quant_scale already. The default multiplies floats; a layout with a kernel of
        its own overrides this.
        """
        return cls.exact_linear(x, qdata, params, bias)

    @classmethod
    def exact_linear(
        cls, x: torch.Tensor, qdata: torch.Tensor, params: Params, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return `linear` with exact activations, differentiable in x."""
        plain = {k: v for k, v in params.items() if k not in (PRE_QUANT_SCALE, "transposed")}
        dense = cls.dequantize(qdata, **{**plain, "orig_dtype": x.dtype})
        return F.linear(x, dense, None if bias is None else bias.to(x.dtype))

    @classmethod
    def weight_only(cls, x: torch.Tensor, qdata: torch.Tensor, params: Params) -> torch.Tensor:
        """Return x W^T with exact activations x [.., K]; pre_quant_scale is left out, no gradient flows."""
        return cls.exact_linear(x, qdata, params)

    @classmethod
    def embedding(
        cls, index: torch.Tensor, qdata: torch.Tensor, params: Params, dtype: torch.dtype
    ) -> torch.Tensor | None:
        """Return rows `index` [..] as `dtype` [.., K], making only those floats; None where it cannot be."""
        return None

    @classmethod
    def view(
        cls, qdata: torch.Tensor, params: Params, shape: tuple[int, ...]
    ) -> tuple[torch.Tensor, Params] | None:
        """Return (qdata, params) seen under another shape; None where only the floats can be."""
        return None

    @classmethod
    def tokens(cls, qdata: torch.Tensor, params: Params, rotation: int) -> torch.Tensor | None:
        """Return the floats [.., K] rotated by `rotation` if they are stored so; else None."""
        stored = params.get("rotation") == rotation and not params.get("transposed")
        return cls.values(qdata, params) if rotation and stored else None

    @classmethod
    def take_rows(
        cls, qdata: torch.Tensor, params: Params, start: int, stop: int
    ) -> tuple[torch.Tensor, Params]:
        """Return rows [start, stop) in memory of their own; ValueError where they cannot be taken apart."""
        form, tensors = cls.store(qdata, params)
        infos = described(tensors)
        step, last = form.row_step, form.shape(infos[WEIGHT].shape)[0]
        if start % step or (stop % step and stop != last):
            raise ValueError(f"rows {start} to {stop} do not lie on blocks of {step}")
        parts = form.rows(start, stop - start, infos)
        mine = {s: t if (p := parts[s]) is None else t[p[0] : p[1]].clone() for s, t in tensors.items()}
        return loaded(form, mine, params["orig_dtype"])

    @classmethod
    def join_rows(cls, parts: Sequence[tuple[torch.Tensor, Params]]) -> tuple[torch.Tensor, Params]:
        """Return the parts below each other; ValueError where they are not stored alike.

        Every part but the last must end on a whole `Format.row_step`.
        """
        stored = [cls.store(*part) for part in parts]
        form, first = stored[0]
        if any(f != form for f, _ in stored):
            raise ValueError("quantized in different ways")
        infos = described(first)
        own = {s for s, part in form.rows(0, infos[WEIGHT].shape[0], infos).items() if part is not None}
        ragged = [t[WEIGHT].shape[0] for _, t in stored[:-1] if t[WEIGHT].shape[0] % form.row_step]
        if ragged:
            raise ValueError(f"{ragged[0]} rows are no whole blocks of {form.row_step}")
        if any(not same(first[s], t[s]) for _, t in stored for s in first if s not in own):
            raise ValueError("quantized in different ways")
        joined = {s: torch.cat([t[s] for _, t in stored]) if s in own else first[s] for s in first}
        return loaded(form, joined, parts[0][1]["orig_dtype"])


def described(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Return the tensors' dtypes (by their safetensors names) and shapes, as formats take them."""
    return {
        s: StoredTensor(s, dtype_name(t.dtype) or str(t.dtype), tuple(t.shape)) for s, t in tensors.items()
    }


def loaded(
    form: Format, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> tuple[torch.Tensor, Params]:
    """Return what the format's layout loads, with what ``comfy_quant`` says beside the tensors."""
    qdata, params = weight_layout(form.layout).load(form, tensors, dtype)
    return qdata, {**params, FULL_PRECISION: True} if form.full_precision_matrix_mult else params


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors of one dtype are equal to the bit; `torch.equal` takes no FP8."""
    return a.shape == b.shape and torch.equal(*(t.contiguous().flatten().view(torch.uint8) for t in (a, b)))


def weight_layout(name: str) -> type[WeightLayout]:
    """Return the layout of that name; CheckpointError where it holds no checkpoint format."""
    found = LAYOUTS.get(name)
    if found is None or not issubclass(found, WeightLayout):
        raise CheckpointError(
            f"layout {name} has no checkpoint format; one that is to be saved, split or run derives from "
            "WeightLayout"
        )
    return found


def given(**params: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Return the parameters that are there."""
    return {k: v for k, v in params.items() if v is not None}


def carried(params: Params) -> dict[str, torch.Tensor]:
    """Return the activation scales among the parameters."""
    return {k: params[k] for k in (PRE_QUANT_SCALE, INPUT_SCALE) if params.get(k) is not None}


def with_extras(form: Format, params: Params) -> Format:
    """Return `form` with the extra tensors, and the wish for float products, that the parameters hold."""
    extra = tuple(s for s in form.extras if params.get(s) is not None)
    return replace(form.having(extra), full_precision_matrix_mult=bool(params.get(FULL_PRECISION)))


def smoothed(weight: torch.Tensor, pre_quant_scale: torch.Tensor | None) -> torch.Tensor:
    """Return the weight [N, K] with its columns divided by pre_quant_scale [K], float32; itself for None."""
    if pre_quant_scale is None:
        return weight
    return weight.float() / pre_quant_scale.to(device=weight.device, dtype=torch.float32)


def unsmoothed(weight: torch.Tensor, pre_quant_scale: torch.Tensor | None) -> torch.Tensor:
    """Multiply the columns of the weight [N, K] by pre_quant_scale [K], in place; return it."""
    return weight if pre_quant_scale is None else weight.mul_(pre_quant_scale.to(weight.dtype))
