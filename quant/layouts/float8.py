"""The layout of ``float8_e4m3fn`` and ``float8_e5m2``: eight-bit floats with one scale in all, or none."""

from collections.abc import Mapping
from typing import ClassVar

import torch

from ...formats import Format
from ...formats.names import INPUT_SCALE, PRE_QUANT_SCALE, SCALE, WEIGHT
from .weight import Params, WeightLayout


class TensorCoreFP8Layout(WeightLayout):
    """FP8 weights as they are stored. They become floats when a model is loaded: there is no FP8 product yet.

    Parameters: scale float32 [], [N, 1] or None, orig_dtype, transposed, pre_quant_scale and input_scale.
    """

    resident: ClassVar[bool] = False

    @classmethod
    def load(
        cls, form: Format, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> tuple[torch.Tensor, Params]:
        """Take FP8 [N, K] with one scale, one per row, or none."""
        params: Params = {"orig_dtype": dtype}
        if SCALE in tensors:
            scale = tensors[SCALE].float()
            params["scale"] = scale.reshape(()) if scale.numel() == 1 else scale.reshape(-1, 1)
        if PRE_QUANT_SCALE in form.extra:
            params[PRE_QUANT_SCALE] = tensors[PRE_QUANT_SCALE].float().flatten()
        if INPUT_SCALE in form.extra:
            params[INPUT_SCALE] = tensors[INPUT_SCALE].float().reshape(())
        return tensors[WEIGHT], params

    @classmethod
    def values(cls, qdata: torch.Tensor, params: Params) -> torch.Tensor:
        """Return the floats times their scale."""
        out, scale = qdata.float(), params.get("scale")
        return out if scale is None else out.mul_(scale)
