"""The layout of ``asym_w4a8_int8``: codes of 4 or 6 bits, decoded to int8 by group scales (W4A8, W6A8)."""

from collections.abc import Mapping

import torch

from ...formats import AsymW4A8Int8, Format
from ...formats.asym_w4a8_int8 import CODEBOOK, GROUP, S_CHANNEL, S_REL
from ...formats.convrot import largest_group
from ...formats.names import INPUT_SCALE, PRE_QUANT_SCALE, WEIGHT
from ...kernels import quantize_decoded
from ...kernels.decoded import CODEBOOK as LEVELS
from ...kernels.packing import pack
from ..decoded_grid import DecodedGrid
from ..grid import Grid
from .base import LAYOUTS
from .packed import PackedLayout
from .weight import Params, Stored, carried, with_extras


class AsymW4A8Int8Layout(PackedLayout):
    """Packed codes int8 [N, K bits / 8], run as the INT8 product of what they decode to.

    Parameters: s_rel float8_e4m3fn [N, K / group_size], s_channel float32 [N], codebook float32 [16] or none,
    bits, group_size, rotation, orig_shape, and those of `WeightLayout`.
    """

    @classmethod
    def quantize(  # type: ignore[override]  # comfy-kitchen's words, which users of the layout know
        cls,
        tensor: torch.Tensor,
        form: Format | None = None,
        pre_quant_scale: torch.Tensor | None = None,
        input_scale: torch.Tensor | None = None,
        bits: int = 4,
        convrot_groupsize: int | None = None,
    ) -> tuple[torch.Tensor, Params]:
        """Round [N, K] to nearest, each group with the best scale near the one that its peak asks for.

        bits (4 or 6) and convrot_groupsize (None: the largest of 256, 64 and 16 that divides K) count where
        no `form` is given. ValueError for a K that the format cannot have.
        """
        if form is None:
            group = convrot_groupsize or largest_group(tensor.shape[1])
            form = AsymW4A8Int8(bits=bits, rotation=group)
        if why := form.why_not((tensor.shape[0], tensor.shape[1])):
            raise ValueError(f"{form.name}: {why}")
        return super().quantize(tensor, form, pre_quant_scale, input_scale)

    @classmethod
    def grid(cls, form: Format) -> Grid:
        """Return the levels with the default codebook, whatever table a weight of others has."""
        assert isinstance(form, AsymW4A8Int8)
        return DecodedGrid(columns=form.group_size, rotation=form.rotation, bits=form.bits)

    @classmethod
    def round(
        cls, tensor: torch.Tensor, form: Format, scale: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Params]:
        """Round [N, K] to nearest, by one kernel where no `scale` is given; see `WeightLayout.round`.

        scale: complex, as the grid has it. ValueError for NaN or Inf in a weight, or from its rotation.
        """
        assert isinstance(form, AsymW4A8Int8)
        if scale is not None:
            return super().round(tensor, form, scale)
        q, s_rel, row = quantize_decoded(tensor, form.bits, form.group_size, form.rotation)
        if not bool(torch.isfinite(row).all()):
            raise ValueError("the weight holds NaN or Inf")
        return q, cls._params(s_rel, row.flatten(), form, tuple(tensor.shape), tensor.dtype)

    @classmethod
    def pack(
        cls, codes: torch.Tensor, scale: torch.Tensor, form: Format, dtype: torch.dtype
    ) -> tuple[torch.Tensor, Params]:
        """Pack the codes and take the complex scales apart."""
        assert isinstance(form, AsymW4A8Int8)
        s_rel, s_channel = scale.imag.to(torch.float8_e4m3fn), scale.real[:, 0].contiguous()
        packed = pack(codes, form.bits, 1 << (form.bits - 1))
        return packed, cls._params(s_rel, s_channel, form, tuple(codes.shape), dtype)

    @classmethod
    def _params(
        cls,
        s_rel: torch.Tensor,
        s_channel: torch.Tensor,
        form: AsymW4A8Int8,
        shape: tuple[int, ...],
        dtype: torch.dtype,
    ) -> Params:
        params: Params = {"s_rel": s_rel, "s_channel": s_channel}
        if form.bits == 4:
            params["codebook"] = torch.tensor(LEVELS, device=s_rel.device)
        params |= {"bits": form.bits, "group_size": form.group_size, "rotation": form.rotation}
        return params | {"orig_shape": shape, "orig_dtype": dtype}

    @classmethod
    def scales(cls, qdata: torch.Tensor, params: Params) -> torch.Tensor:
        """Return both scales as the grid takes them, complex [N, K / group_size]."""
        s_rel = params["s_rel"].float()
        return torch.complex(params["s_channel"].unsqueeze(1).expand_as(s_rel).contiguous(), s_rel)

    @classmethod
    def nearest(cls, work: torch.Tensor, qdata: torch.Tensor, params: Params) -> torch.Tensor:
        """Return the nearest values, by the weight's own codebook; see `WeightLayout.nearest`."""
        table, bits = params.get("codebook"), params["bits"]
        if bits == 6 or (table is not None and torch.equal(table.cpu(), torch.tensor(LEVELS))):
            return super().nearest(work, qdata, params)
        table = torch.arange(-8.0, 8.0, device=work.device) if table is None else table
        row = params["s_channel"].view(-1, 1, 1)
        levels = (params["s_rel"].float().unsqueeze(2) * table).round_().clamp_(-127, 127)
        groups = (work / row.squeeze(2)).view(*levels.shape[:2], -1)
        best = torch.zeros_like(groups)
        least = torch.full_like(groups, float("inf"))
        for level in levels.unbind(2):
            away = (groups - level.unsqueeze(2)).abs_()
            best = torch.where(away < least, level.unsqueeze(2), best)
            least = torch.minimum(least, away)
        return best.mul_(row).view(work.shape)

    @classmethod
    def form(cls, params: Params) -> Format:
        """Return bits, groups and rotation."""
        form = AsymW4A8Int8(
            bits=params["bits"],
            group_size=params.get("group_size", GROUP),
            rotation=params["rotation"],
            codebook=params.get("codebook") is not None,
        )
        return with_extras(form, params)

    @classmethod
    def load(
        cls, form: Format, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> tuple[torch.Tensor, Params]:
        """Take packed codes, scales and codebook; group scales may be stored as bytes."""
        assert isinstance(form, AsymW4A8Int8)
        s_rel = tensors[S_REL]
        params: Params = {
            "s_rel": s_rel.view(torch.float8_e4m3fn) if s_rel.dtype == torch.uint8 else s_rel,
            "s_channel": tensors[S_CHANNEL].float(),
            **({"codebook": tensors[CODEBOOK].float()} if form.codebook else {}),
        }
        params |= {"bits": form.bits, "group_size": form.group_size, "rotation": form.rotation}
        params |= {"orig_dtype": dtype, "orig_shape": form.shape(tuple(tensors[WEIGHT].shape))}
        if INPUT_SCALE in form.extra:
            params[INPUT_SCALE] = tensors[INPUT_SCALE].float().reshape(())
        if PRE_QUANT_SCALE in form.extra:
            params[PRE_QUANT_SCALE] = tensors[PRE_QUANT_SCALE].float().flatten()
        return tensors[WEIGHT], params

    @classmethod
    def store(cls, qdata: torch.Tensor, params: Params) -> tuple[Format, Stored]:
        """Return the tensors as stock ComfyUI writes them."""
        own = {S_REL: params["s_rel"], S_CHANNEL: params["s_channel"]}
        table = params.get("codebook")
        return cls.form(params), {
            WEIGHT: qdata,
            **own,
            **({} if table is None else {CODEBOOK: table}),
            **carried(params),
        }

    @classmethod
    def decoding(cls, params: Params) -> tuple[int, torch.Tensor | None, torch.Tensor | None]:
        """Return bits, the groups' scales and the codebook."""
        return params["bits"], params["s_rel"].view(torch.uint8), params.get("codebook")

    @classmethod
    def row_scale(cls, params: Params) -> torch.Tensor:
        """Return the scale per row, float32 [N, 1]."""
        scale: torch.Tensor = params["s_channel"]
        return scale.unsqueeze(1)


LAYOUTS["W4A8Int8Layout"] = AsymW4A8Int8Layout
