"""A factory of operations whose Linear loads, saves, casts and patches as the host's does."""

import json

import torch
from torch import nn

from .quant_ops import QUANT_ALGOS, QuantizedTensor, get_layout_class


def mixed_precision_ops(
    quant_config=None, compute_dtype=torch.bfloat16, full_precision_mm=False, disabled=()
):
    class Operations:
        class Linear(nn.Module):
            def __init__(self, in_features, out_features, bias=True, device=None, dtype=None):
                super().__init__()
                self.in_features, self.out_features = in_features, out_features
                self.weight_function = []
                self.bias = nn.Parameter(torch.empty(out_features, dtype=compute_dtype)) if bias else None

            def _load_from_state_dict(self, state, prefix, meta, strict, missing, unexpected, errors):
                weight = state.pop(prefix + "weight")
                conf = state.pop(prefix + "comfy_quant", None)
                if conf is None:
                    self.weight = nn.Parameter(weight.to(compute_dtype), requires_grad=False)
                else:
                    self._load_quantized(weight, json.loads(conf.numpy().tobytes()), state, prefix)
                super()._load_from_state_dict(state, prefix, meta, strict, missing, unexpected, errors)
                if prefix + "weight" in missing:
                    missing.remove(prefix + "weight")

            def _load_quantized(self, weight, conf, state, prefix):
                self.quant_format = conf["format"]
                algo = QUANT_ALGOS[self.quant_format]  # KeyError for a format the host does not know
                self.layout_type = algo["comfy_tensor_layout"]
                if self.quant_format != "int8_tensorwise":
                    raise ValueError(f"Unsupported quantization format: {self.quant_format}")
                more = {}
                if conf.get("convrot"):
                    more = {"convrot": True, "convrot_groupsize": int(conf.get("convrot_groupsize", 256))}
                params = get_layout_class(self.layout_type).Params(
                    scale=state.pop(prefix + "weight_scale"),
                    orig_dtype=compute_dtype,
                    orig_shape=(self.out_features, self.in_features),
                    **more,
                )
                made = QuantizedTensor(weight.to(algo["storage_t"]), self.layout_type, params)
                self.weight = nn.Parameter(made, requires_grad=False)

            def state_dict(self, *args, destination=None, prefix="", **kwargs):
                sd = {} if destination is None else destination
                if self.bias is not None:
                    sd[prefix + "bias"] = self.bias
                if not isinstance(self.weight, QuantizedTensor):
                    sd[prefix + "weight"] = self.weight
                    return sd
                sd.update(self.weight.state_dict(prefix + "weight"))
                conf = {"format": self.quant_format}
                if self.quant_format == "int8_tensorwise" and self.weight._params.convrot:
                    conf.update(convrot=True, convrot_groupsize=self.weight._params.convrot_groupsize)
                sd[prefix + "comfy_quant"] = torch.tensor(list(json.dumps(conf).encode()), dtype=torch.uint8)
                return sd

            def forward(self, x):
                weight = self.weight.to(dtype=x.dtype)
                if self.weight_function and isinstance(weight, QuantizedTensor):
                    weight = weight.dequantize()
                for function in self.weight_function:
                    weight = function(weight)
                return nn.functional.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))

            def convert_weight(self, weight, inplace=False, **kwargs):
                return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight

            def set_weight(self, weight, inplace_update=False, seed=None, return_weight=False, **kwargs):
                if getattr(self, "layout_type", None) is not None:
                    weight = self.weight.requantize_from_float(
                        weight, scale="recalculate", stochastic_rounding=seed, inplace_ops=True
                    )
                self.weight = nn.Parameter(weight.to(self.weight.dtype), requires_grad=False)

        class LayerNorm(nn.LayerNorm):
            pass

    return Operations


def pick_operations(quant_config, compute_dtype):
    """The host finds the factory by its name in this module."""
    return mixed_precision_ops(quant_config, compute_dtype)
