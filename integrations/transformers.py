"""The quantizer that transformers calls: ``from_pretrained`` and ``save_pretrained`` of its models.

transformers 5: `core_model_loading` collects the tensors of a parameter and gives them to our operations.
"""

from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.base import HfQuantizer

from ..formats.names import CONFIG, WEIGHT
from ..quant.runtime import plain_state_dict
from ..quant.runtime.stored import as_parameter, companions, read_weight
from .config import CtqConfig
from .diffusers import dequantize_model
from .layers import LayerPlan, bytes_per_weight


class CtqTransformersQuantizer(HfQuantizer):
    """Quantizes a model while it is loaded, or takes one that is stored quantized as it is.

    After loading `skipped` says why layers were left, `plan` what the others are.
    """

    requires_calibration = False
    quantization_config: CtqConfig

    def __init__(self, quantization_config: CtqConfig, **kwargs: Any):
        super().__init__(quantization_config, **kwargs)
        self.plan = LayerPlan()
        self._bytes = 1.0

    @property
    def skipped(self) -> dict[str, str]:
        """Why layers were left as they are, by name."""
        return self.plan.skipped

    @property
    def quantized_element_size(self) -> float:
        """Bytes per element of a quantized weight."""
        return self._bytes

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        if not self.pre_quantized:
            half = kwargs.get("dtype") == torch.float16 or getattr(model, "dtype", None) == torch.float16
            floats = getattr(model, "_keep_in_fp32_modules", None) or () if half else ()
            self.plan = LayerPlan.of(model, self.quantization_config, floats)
            self._bytes = bytes_per_weight(model, self.plan.forms, self.plan)

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        """Tell whether a parameter is rounded when it arrives."""
        return param_name in self.plan

    def get_quantize_ops(self) -> ConversionOps:
        """Return the operation that rounds a weight."""
        return Quantize(self)

    @property
    def serialized_names(self) -> dict[str, list[str]]:
        """The tensors that a stored weight is made of."""
        return {WEIGHT: [WEIGHT, *companions()]} if self.pre_quantized else {}

    def get_load_operations(self) -> dict[str, Any]:
        """Return the operation that puts a stored weight together."""
        return {"deserialize": PutTogether}

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """Leave every tensor of a weight as it is stored; `PutTogether` casts what is plain."""
        ours = [op for op in getattr(converter, "operations", ()) if isinstance(op, PutTogether)]
        for op in ours:
            op.dtype = dtype
        return None if ours else dtype

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> nn.Module:
        # Saving would run them backwards; `get_state_dict_and_metadata` has taken the weights apart by then.
        used = getattr(model, "_weight_conversions", None)
        if used is not None:
            model._weight_conversions = [c for c in used if not _ours(c)]
        return model

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Return what ``save_pretrained`` writes: the tensors of a checkpoint, as ComfyUI has them."""
        return plain_state_dict(model.state_dict()), {}

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        dequantize_model(model, dtype)
        return model

    def is_serializable(self) -> bool:
        """``save_pretrained`` works."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters on top can be trained."""
        return True

    @property
    def is_compileable(self) -> bool:
        """``torch.compile`` gives one graph."""
        return True


def _ours(conversion: Any) -> bool:
    return any(isinstance(op, PutTogether) for op in getattr(conversion, "operations", ()))


class Quantize(ConversionOps):
    """Rounds one weight where it is."""

    def __init__(self, hf_quantizer: CtqTransformersQuantizer):
        self.hf_quantizer = hf_quantizer

    def convert(
        self, input_dict: dict[str, Any], full_layer_name: str, **kwargs: Any
    ) -> dict[str, nn.Parameter]:
        """Return the quantized parameter under its name."""
        value = next(iter(input_dict.values()))
        value = value[0] if isinstance(value, list) else value
        return {full_layer_name: as_parameter(self.hf_quantizer.plan.quantize(full_layer_name, value))}


class PutTogether(ConversionOps):
    """Makes one weight of its stored tensors; a weight that is stored alone is cast as the model has it."""

    dtype: torch.dtype | None = None
    """What the model wants a plain weight in."""

    def __init__(self, hf_quantizer: CtqTransformersQuantizer):
        self.hf_quantizer = hf_quantizer

    def __deepcopy__(self, memo: dict[int, Any]) -> "PutTogether":
        """Make one for another weight: there is one per weight, and one quantizer."""
        return PutTogether(self.hf_quantizer)

    def convert(
        self, input_dict: dict[str, Any], full_layer_name: str, model: nn.Module, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Return the parameter under its name; CheckpointError, naming the layer, for what does not fit."""
        tensors = {s: t[0] if isinstance(t, list) else t for s, t in input_dict.items()}
        layer, _, leaf = full_layer_name.rpartition(".")
        owner = model.get_submodule(layer)
        wanted = getattr(owner, leaf)
        if CONFIG not in tensors:
            value = tensors[WEIGHT]
            return {full_layer_name: value.to(self.dtype) if value.is_floating_point() else value}
        config = tensors.pop(CONFIG)
        made = read_weight(config, tensors, layer, self.dtype or wanted.dtype)[1]
        return {full_layer_name: as_parameter(made)}
