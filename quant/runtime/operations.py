"""``mixed_precision_ops``: module classes that read quantized checkpoints."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...formats import CheckpointError, Format
from ...formats.names import CONFIG, WEIGHT
from ..tensor import QuantizedTensor
from .experts import Experts
from .stored import as_parameter, companions, read_weight, tensors_of


class _Quantized(nn.Module):
    """Loading and saving of a module whose ``weight`` may be quantized; `ops` is set by the factory."""

    ops: Any

    def _load_from_state_dict(self, state, prefix, meta, strict, missing, unexpected, errors):
        layer = prefix.rstrip(".")
        weight = state.get(f"{prefix}weight")
        beside = companions()
        extras = {e: state[prefix + e] for e in beside if prefix + e in state}
        conf = extras.pop(CONFIG, None)
        conf = self.ops.config_for(layer) if conf is None else conf
        if weight is None or (conf is None and weight.dtype != torch.int8):
            super()._load_from_state_dict(state, prefix, meta, strict, missing, unexpected, errors)
            self._cast_floats()
            return
        try:
            if conf is None:
                raise CheckpointError(f"layer {layer} is stored as int8 without {layer}.comfy_quant")
            form, made = self._build(layer, {WEIGHT: weight, **extras}, conf)
        except CheckpointError as e:
            errors.append(str(e))
            return
        self.quant_format, self.full_precision = form.name, form.full_precision_matrix_mult
        self.weight = as_parameter(made)
        # What was read here must not be reported, or read again, by the plain loader.
        rest = {k: v for k, v in state.items() if k not in {prefix + n for n in (*beside, WEIGHT)}}
        super()._load_from_state_dict(rest, prefix, meta, strict, missing, unexpected, errors)
        if f"{prefix}weight" in missing:
            missing.remove(f"{prefix}weight")
        self._cast_floats()

    def _build(self, layer, tensors, conf) -> tuple[Format, torch.Tensor]:
        device = self.weight.device if not self.weight.is_meta else tensors[WEIGHT].device
        on = {k: v.to(device) for k, v in tensors.items()}
        form, made = read_weight(conf, on, layer, self.ops.compute_dtype)
        shape = form.logical(tuple(tensors[WEIGHT].shape))
        if shape != tuple(self.weight.shape):
            raise CheckpointError(
                f"layer {layer}: {list(shape)} in the checkpoint, {list(self.weight.shape)} here"
            )
        return form, made

    def _cast_floats(self) -> None:
        """Keep plain weights in the compute dtype, as ComfyUI does."""
        for name, p in self._parameters.items():
            if p is not None and not isinstance(p, QuantizedTensor) and p.dtype != self.ops.compute_dtype:
                self._parameters[name] = nn.Parameter(
                    p.detach().to(self.ops.compute_dtype), requires_grad=False
                )

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if isinstance(self.weight, QuantizedTensor):
            del destination[f"{prefix}weight"]
            for leaf, tensor in tensors_of(self.weight, getattr(self, "num_experts", 0)).items():
                destination[prefix + leaf] = tensor


class _Cast:
    """Parameters follow the input's dtype and device in each call, so a model may mix precisions."""

    def _get(self, name: str, x: torch.Tensor) -> torch.Tensor | None:
        p = getattr(self, name, None)
        return (
            p
            if p is None or (p.dtype == x.dtype and p.device == x.device)
            else p.to(dtype=x.dtype, device=x.device)
        )


class _Linear(_Cast, _Quantized, nn.Linear):
    quant_format: str | None = None
    full_precision = False

    def reset_parameters(self) -> None:
        """Do nothing: a checkpoint fills the weight, so random numbers would be time lost."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output [.., N] for x [.., K], in x's dtype."""
        weight: Any = self._get("weight", x)
        if isinstance(weight, QuantizedTensor) and (self.ops.full_precision_mm or self.full_precision):
            weight = weight.dequantize()
        return F.linear(x, weight, self._get("bias", x))


class _Embedding(_Quantized, nn.Embedding):
    quant_format: str | None = None
    full_precision = False

    def reset_parameters(self) -> None:
        """Do nothing: a checkpoint fills the weight, so random numbers would be time lost."""

    def forward(self, index: torch.Tensor, out_dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return rows of the table; a quantized one dequantizes only the rows it reads."""
        out = super().forward(index)
        return out if out_dtype is None else out.to(out_dtype)


class _Experts(_Quantized, Experts):
    quant_format: str | None = None

    def expert_linear(self, x: torch.Tensor, i: int) -> torch.Tensor:
        """Return expert `i`'s output [.., N] for x [.., K], in x's dtype."""
        self.full_precision = self.full_precision or self.ops.full_precision_mm
        return super().expert_linear(x, i)


class _Conv(_Cast):
    def reset_parameters(self) -> None:
        """Do nothing: a checkpoint fills the weight, so random numbers would be time lost."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the torch module would, in x's dtype."""
        return self._conv_forward(x, self._get("weight", x), self._get("bias", x))  # type: ignore[attr-defined]


class _LayerNorm(_Cast, nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the torch module would, in x's dtype."""
        return F.layer_norm(x, self.normalized_shape, self._get("weight", x), self._get("bias", x), self.eps)


class _GroupNorm(_Cast, nn.GroupNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the torch module would, in x's dtype."""
        return F.group_norm(x, self.num_groups, self._get("weight", x), self._get("bias", x), self.eps)


class _RMSNorm(_Cast, nn.RMSNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the torch module would, in x's dtype."""
        return F.rms_norm(x, self.normalized_shape, self._get("weight", x), self.eps)


def _transposed(base: type, function: Any) -> type:
    class Transposed(_Conv, base):  # type: ignore[misc, valid-type]
        def forward(self, x: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
            """Return what the torch module would, in x's dtype."""
            spatial = len(self.kernel_size)
            padding = self._output_padding(
                x, output_size, self.stride, self.padding, self.kernel_size, spatial, self.dilation
            )
            weight, bias = self._get("weight", x), self._get("bias", x)
            return function(x, weight, bias, self.stride, self.padding, padding, self.groups, self.dilation)

    return Transposed


_PLAIN = {
    "Conv1d": (_Conv, nn.Conv1d),
    "Conv2d": (_Conv, nn.Conv2d),
    "Conv3d": (_Conv, nn.Conv3d),
    "ConvTranspose1d": (_transposed(nn.ConvTranspose1d, F.conv_transpose1d),),
    "ConvTranspose2d": (_transposed(nn.ConvTranspose2d, F.conv_transpose2d),),
    "LayerNorm": (_LayerNorm,),
    "GroupNorm": (_GroupNorm,),
    "RMSNorm": (_RMSNorm,),
}


def mixed_precision_ops(
    quant_config: dict[str, Any] | None = None,
    compute_dtype: torch.dtype = torch.bfloat16,
    full_precision_mm: bool = False,
) -> Any:
    """Return module classes that read quantized checkpoints, for models written against such a factory::

        ops = mixed_precision_ops({}, torch.bfloat16)
        layer = ops.Linear(3072, 3072, device="meta")
        layer.load_state_dict(state_of_that_layer)

    The same as ComfyUI's function of this name. Linear, Embedding and MoEExperts read ``weight``,
    ``weight_scale``, ``input_scale``, ``comfy_quant`` and ``pre_quant_scale`` and write them back in
    ``state_dict``; one without ``comfy_quant`` is a plain one in compute_dtype.
    Conv1d/2d/3d, ConvTranspose1d/2d, LayerNorm, GroupNorm, RMSNorm and Embedding cast to their input's dtype.
    Constructors are torch's (..., device=None, dtype=None).

    quant_config: ``{layer: comfy_quant dict}`` or ``{"layers": {...}}`` for layers whose checkpoint has no
        comfy_quant tensor (header metadata); None or other keys: nothing.
    compute_dtype: of plain weights and the logical dtype of quantized ones.
    full_precision_mm: dequantize and multiply in the input's dtype instead of INT8. A layer whose
        comfy_quant says ``full_precision_matrix_mult`` does so anyway.
    """
    layers = (quant_config or {}).get("layers", quant_config or {})
    kept = {name: conf for name, conf in layers.items() if isinstance(conf, dict) and "format" in conf}

    class MixedPrecisionOps:
        """See `mixed_precision_ops`."""

    ops: Any = MixedPrecisionOps
    ops.compute_dtype, ops.full_precision_mm = compute_dtype, full_precision_mm
    ops.config_for = staticmethod(kept.get)
    bases = {"Linear": (_Linear,), "Embedding": (_Embedding,), "MoEExperts": (_Experts,), **_PLAIN}
    for name, base in bases.items():
        setattr(ops, name, type(name, base, {"ops": ops, "__module__": __name__}))

    def conv_nd(dims: int, *args: Any, **kwargs: Any) -> nn.Module:
        """Make a Conv1d, Conv2d or Conv3d, by the number of dimensions."""
        return getattr(ops, f"Conv{dims}d")(*args, **kwargs)

    ops.conv_nd = staticmethod(conv_nd)
    return ops
