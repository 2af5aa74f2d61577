"""A factory of operations whose Linear loads, saves, casts and patches as the host's does."""

import json

import torch
from torch import nn

from .quant_ops import QUANT_ALGOS, QuantizedTensor, get_layout_class


def _load(self, state, prefix, meta, strict, missing, unexpected, errors):
    weight = state.pop(prefix + "weight")
    conf = state.pop(prefix + "comfy_quant", None)
    if conf is None:
        self.weight = nn.Parameter(weight.to(torch.float32), requires_grad=False)
    else:
        _load_quantized(self, weight, json.loads(conf.numpy().tobytes()), state, prefix)
    nn.Module._load_from_state_dict(self, state, prefix, meta, strict, missing, unexpected, errors)
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
        scale=state.pop(prefix + "weight_scale"), orig_dtype=torch.float32, orig_shape=self._shape, **more
    )
    made = QuantizedTensor(weight.to(algo["storage_t"]), self.layout_type, params)
    self.weight = nn.Parameter(made, requires_grad=False)


def _saved(self, destination, prefix, more=()):
    sd = {} if destination is None else destination
    if getattr(self, "bias", None) is not None:
        sd[prefix + "bias"] = self.bias
    if not isinstance(self.weight, QuantizedTensor):
        sd[prefix + "weight"] = self.weight
        return sd
    sd.update(self.weight.state_dict(prefix + "weight"))
    conf = {"format": self.quant_format}
    if self.quant_format == "int8_tensorwise" and getattr(self.weight._params, "convrot", False):
        conf.update(convrot=True, convrot_groupsize=self.weight._params.convrot_groupsize)
    conf.update(more)
    sd[prefix + "comfy_quant"] = torch.tensor(list(json.dumps(conf).encode()), dtype=torch.uint8)
    return sd


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

            _load_from_state_dict = _load
            _shape = property(lambda self: (self.out_features, self.in_features))

            def state_dict(self, *args, destination=None, prefix="", **kwargs):
                return _saved(self, destination, prefix)

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

        class Embedding(nn.Embedding):
            _load_from_state_dict = _load
            _shape = property(lambda self: (self.num_embeddings, self.embedding_dim))

            def state_dict(self, *args, destination=None, prefix="", **kwargs):
                return _saved(self, destination, prefix)

            def forward(self, index):
                if isinstance(self.weight, QuantizedTensor) and self.quant_format == "int8_tensorwise":
                    w = self.weight
                    return get_layout_class(self.layout_type).dequantize_embedding(w._qdata, w._params, index)
                return super().forward(index)

        class MoEExperts(nn.Module):
            _load_from_state_dict = _load
            _shape = property(lambda self: (self.num_experts, self.out_features, self.in_features))
            _full_precision_mm = False

            def __init__(self, num_experts, in_features, out_features, bias=True):
                super().__init__()
                self.num_experts, self.in_features, self.out_features = num_experts, in_features, out_features
                self.bias = nn.Parameter(torch.empty(num_experts, out_features)) if bias else None

            def state_dict(self, *args, destination=None, prefix="", **kwargs):
                return _saved(self, destination, prefix, {"num_experts": self.num_experts})

            def expert_linear(self, x, i):
                return self._expert_linear_impl(x, self.weight, self.bias, i)

            def _expert_linear_impl(self, x, weight, bias, i):
                if isinstance(weight, QuantizedTensor):
                    out = x @ self._expert_qt_from(weight, i).dequantize().t()
                    return out if bias is None else out + bias[i]
                return nn.functional.linear(x, weight[i], None if bias is None else bias[i])

            def _expert_qt_from(self, weight, i):
                """As the host's: the rotation is left behind."""
                p = weight._params
                scale = p.scale[i] if p.scale.dim() else p.scale
                more = {"convrot_groupsize": p.convrot_groupsize} if hasattr(p, "convrot_groupsize") else {}
                shape = self.out_features, self.in_features
                made = type(p)(scale=scale, orig_dtype=p.orig_dtype, orig_shape=shape, **more)
                return QuantizedTensor(weight._qdata[i], weight._layout_cls, made)

        class LayerNorm(nn.LayerNorm):
            pass

    return Operations


def pick_operations(quant_config, compute_dtype):
    """The host finds the factory by its name in this module."""
    return mixed_precision_ops(quant_config, compute_dtype)
