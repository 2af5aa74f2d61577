"""The quantizer that diffusers calls: ``from_pretrained``, ``from_single_file``, ``save_pretrained``.

diffusers 0.42: ``quantizers/base.py`` describes each method; ``load_model_dict_into_meta`` of
``models/model_loading_utils.py`` calls them, tensor after tensor.
"""

import logging
from typing import Any

import torch
from diffusers.quantizers.base import DiffusersQuantizer
from torch import nn

from ..formats import CheckpointError, ConversionError
from ..quant import QuantizedTensor
from ..quant.runtime import plain_state_dict
from ..quant.runtime.adapters import remember_folds
from ..quant.runtime.stored import as_parameter
from .config import CtqConfig
from .layers import LayerPlan, bytes_per_weight
from .stored import FLOAT8, Shards, folds_in, put_together, stored_layers, without_companions, without_prefix

logger = logging.getLogger(__name__)


class CtqDiffusersQuantizer(DiffusersQuantizer):
    """Quantizes a model while it is loaded, or takes one that is stored quantized as it is.

    After loading `skipped` says why layers were left, `plan` what the others are. metadata: the folds of the
    model's file, as its header has them.
    """

    requires_calibration = False
    required_packages = ("accelerate",)
    use_keep_in_fp32_modules = True
    quantization_config: CtqConfig

    def __init__(self, quantization_config: CtqConfig, **kwargs: Any):
        super().__init__(quantization_config, **kwargs)
        self.plan = LayerPlan()
        self._layers: set[str] | None = None
        self._shards = Shards()
        self.metadata: dict[str, str] = {}

    @property
    def skipped(self) -> dict[str, str]:
        """Why layers were left as they are, by name."""
        return self.plan.skipped

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """ConversionError where accelerate, which diffusers fills quantized models with, is missing."""
        try:
            import accelerate  # noqa: F401
        except ImportError as e:
            raise ConversionError(
                "diffusers needs accelerate to load quantized models: pip install accelerate"
            ) from e

    def adjust_target_dtype(self, torch_dtype: torch.dtype) -> Any:
        """Return the dtype by which the size of quantized weights is reckoned for a ``device_map``."""
        from accelerate.utils import CustomDtype

        return CustomDtype.INT4 if self._bytes < 0.75 else torch.int8

    def get_special_dtypes_update(self, model: nn.Module, torch_dtype: torch.dtype) -> dict[str, torch.dtype]:
        """Return the dtype of all parameters that are not quantized."""
        dtype = torch_dtype or torch.float32
        return {n: dtype for n, _ in model.named_parameters() if not self._is_quantized(n)}

    def get_cuda_warm_up_factor(self) -> int:
        """Return 4 for weights of half the bytes of a 16-bit model, 8 for a quarter."""
        return 8 if self._bytes < 0.75 else 4

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[str]) -> list[str]:
        """Return the names that a model has, without those of scales and the like."""
        self._layers = stored_layers(loaded_keys)
        self._shards = Shards(f for f in checkpoint_files if not isinstance(f, dict))
        self.metadata = folds_in(self._shards.files)
        return without_companions(loaded_keys)

    def maybe_update_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return the state dict of a file, or of one shard, with one tensor per weight."""
        state = without_prefix(state_dict)
        return put_together(state, self._layers, self._shards)

    @property
    def supports_parallel_loading(self) -> bool:
        """Layers are rounded one after the other: memory holds one of them besides the result."""
        return False

    def _process_model_before_weight_loading(
        self,
        model: Any,
        keep_in_fp32_modules: list[str] | None = None,
        state_dict: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        model.register_to_config(quantization_config=self.quantization_config)
        if state_dict is not None:  # a single file, which says itself whether it is quantized
            stored = {n for n, t in state_dict.items() if isinstance(t, QuantizedTensor)}
            self._layers = {n.rpartition(".")[0] for n in stored}
        if self._layers:
            logger.info("%d layers are stored quantized", len(self._layers))
        elif state_dict is not None or not self.pre_quantized:
            self.plan = LayerPlan.of(model, self.quantization_config, keep_in_fp32_modules or ())
        self._bytes = bytes_per_weight(model, self.plan.forms, self.plan)

    _bytes = 1.0

    def _is_quantized(self, parameter: str) -> bool:
        layer, _, leaf = parameter.rpartition(".")
        return parameter in self.plan or (leaf == "weight" and layer in (self._layers or ()))

    def check_if_quantized_param(
        self, model: nn.Module, param_value: Any, param_name: str, state_dict: dict[str, Any], **kwargs: Any
    ) -> bool:
        """Tell whether `create_quantized_param` makes the parameter."""
        plain8 = isinstance(param_value, torch.Tensor) and param_value.dtype in FLOAT8
        return isinstance(param_value, QuantizedTensor) or param_name in self.plan or plain8

    def create_quantized_param(
        self,
        model: nn.Module,
        param_value: torch.Tensor,
        param_name: str,
        target_device: Any,
        state_dict: dict[str, Any],
        unexpected_keys: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Put a stored weight in its place, or round a float one where it will be."""
        layer, _, leaf = param_name.rpartition(".")
        module = model.get_submodule(layer)
        dtype = kwargs.get("dtype") or getattr(module, leaf).dtype
        value = param_value.to(target_device)
        if value.dtype != dtype:
            value = value.to(dtype)
        if param_name in self.plan:
            value = self.plan.quantize(param_name, value)
        module._parameters[leaf] = as_parameter(value)

    def check_quantized_param_shape(self, param_name: str, current_param: Any, loaded_param: Any) -> bool:
        """CheckpointError where a stored weight is not of the model's shape; diffusers leaves it to us."""
        found, wanted = list(loaded_param.shape), list(current_param.shape)
        if found != wanted:
            raise CheckpointError(f"{param_name} is {found}, the model needs {wanted}")
        return True

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        remember_folds(model, self.metadata)
        return model

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Any], safe_serialization: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what ``save_pretrained`` writes: the tensors of a checkpoint, as ComfyUI has them."""
        return plain_state_dict(state_dict), dict(self.metadata)

    def _dequantize(self, model: Any) -> nn.Module:
        dequantize_model(model)
        told = {k: v for k, v in model.config.items() if k != "quantization_config"}
        model._internal_dict = type(model.config)(told)
        return model

    @property
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


def dequantize_model(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Replace every quantized parameter by its floats, in place, as `dtype` (None: its own)."""
    for module in model.modules():
        for leaf, p in module._parameters.items():
            if isinstance(p, QuantizedTensor):
                module._parameters[leaf] = nn.Parameter(p.dequantize(dtype), requires_grad=False)
