"""What the tensors of one quantized layer mean: ``comfy_quant`` JSON and scales <-> QuantizedTensor."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...formats.errors import CheckpointError
from ...kernels.rotation import check_rotation
from ..tensor import QuantizedTensor

TENSORWISE, BLOCKWISE = "int8_tensorwise", "int8_blockwise"
INT8_FORMATS = {TENSORWISE: "TensorWiseINT8Layout", BLOCKWISE: "BlockWiseINT8Layout"}
FLOAT8_FORMATS = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
EXTRAS = ("weight_scale", "comfy_quant", "input_scale", "pre_quant_scale")
"""Tensors that stand beside ``weight`` in a quantized layer."""


@dataclass(frozen=True)
class LayerConfig:
    """The parsed ``comfy_quant`` of a layer."""

    format: str
    rotation: int = 0
    block_size: int = 128
    full_precision: bool = False


def tensor_name(layer: str, leaf: str) -> str:
    """The name of a layer's tensor; the layer "" is the model itself."""
    return f"{layer}.{leaf}" if layer else leaf


def parse_config(raw: torch.Tensor | dict, layer: str) -> LayerConfig:
    """Read ``comfy_quant`` of `layer`: uint8 JSON, or already a dict.

    CheckpointError when it is not JSON or names no format that this runtime reads.
    The keys convrot, convrot_groupsize and group_size may stand inside "params".
    """
    conf = raw
    if isinstance(raw, torch.Tensor):
        try:
            conf = json.loads(bytes(raw.cpu().contiguous().view(torch.uint8).numpy()).decode("utf-8"))
        except ValueError as e:
            raise CheckpointError(f"{layer}.comfy_quant is not JSON: {e}") from e
    if not isinstance(conf, dict) or not isinstance(conf.get("format"), str):
        raise CheckpointError(f"{layer}.comfy_quant names no format: {conf}")
    inner = conf.get("params")
    merged = {**(inner if isinstance(inner, dict) else {}), **conf}
    name = merged["format"]
    if name not in INT8_FORMATS and name not in FLOAT8_FORMATS:
        known = ", ".join((*INT8_FORMATS, *FLOAT8_FORMATS))
        raise CheckpointError(f"layer {layer} has format {name!r}; this runtime reads {known}")
    rotation = int(merged.get("convrot_groupsize", 256)) if merged.get("convrot") else 0
    block = int(merged.get("group_size") or merged.get("block_size") or 128)
    return LayerConfig(name, rotation, block, bool(merged.get("full_precision_matrix_mult")))


def build_weight(
    layer: str,
    qdata: torch.Tensor,
    tensors: dict[str, torch.Tensor],
    config: LayerConfig,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The weight of `layer` from its stored tensors.

    qdata: int8 [N, K] (float8 for the float8 formats). tensors: the EXTRAS that are there, by leaf name.
    dtype: logical dtype. INT8 gives a QuantizedTensor; float8 is dequantized to `dtype`, because this
    project has no float8 linear. CheckpointError, naming the layer, for a missing or misshapen scale,
    a wrong storage dtype, or a rotation that does not divide K.
    """
    scale = tensors.get("weight_scale")
    if config.format in FLOAT8_FORMATS:
        return _float8(layer, qdata, scale, tensors.get("pre_quant_scale"), dtype)
    if scale is None:
        raise CheckpointError(f"layer {layer} ({config.format}) has no weight_scale")
    if qdata.dtype != torch.int8 or qdata.dim() != 2:
        raise CheckpointError(
            f"layer {layer}: {config.format} needs int8 [N, K], not {qdata.dtype} {list(qdata.shape)}"
        )
    params: dict[str, Any] = {"scale": _scale(layer, qdata, scale.float(), config), "orig_dtype": dtype}
    if config.format == BLOCKWISE:
        params["block_size"] = config.block_size
    else:
        try:
            check_rotation(qdata.shape[1], config.rotation)
        except ValueError as e:
            raise CheckpointError(f"layer {layer}: {e}") from e
        params["rotation"] = config.rotation
        if "input_scale" in tensors:
            params["input_scale"] = _one(layer, "input_scale", tensors["input_scale"])
    if "pre_quant_scale" in tensors:
        smooth = tensors["pre_quant_scale"].float().flatten()
        if smooth.shape != qdata.shape[1:]:
            raise CheckpointError(
                f"layer {layer}: pre_quant_scale has {smooth.numel()} entries for {qdata.shape[1]} columns"
            )
        params["pre_quant_scale"] = smooth
    return QuantizedTensor(qdata, INT8_FORMATS[config.format], params)


def _one(layer: str, leaf: str, value: torch.Tensor) -> torch.Tensor:
    if value.numel() != 1:
        raise CheckpointError(f"layer {layer}: {leaf} must have one element, not {list(value.shape)}")
    return value.float().reshape(())


def _scale(layer: str, qdata: torch.Tensor, scale: torch.Tensor, config: LayerConfig) -> torch.Tensor:
    """The scale in the shape the kernels take: [], [N, 1], or [ceil(N / b), ceil(K / b)]."""
    n, k = qdata.shape
    if config.format == BLOCKWISE:
        want = (-(-n // config.block_size), -(-k // config.block_size))
        if tuple(scale.shape) != want:
            raise CheckpointError(
                f"layer {layer}: weight_scale is {list(scale.shape)}, "
                f"blocks of {config.block_size} need {list(want)}"
            )
        return scale
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.numel() == n and max(scale.shape) == n:
        return scale.reshape(n, 1)
    raise CheckpointError(
        f"layer {layer}: weight_scale is {list(scale.shape)}, expected one entry or [{n}, 1]"
    )


def _float8(layer, qdata, scale, smooth, dtype) -> torch.Tensor:
    out = qdata.float()
    if scale is not None:
        out.mul_(_one(layer, "weight_scale", scale))
    if smooth is not None:
        out.mul_(smooth.float().flatten())
    return out.to(dtype)


def as_parameter(tensor: torch.Tensor) -> nn.Parameter:
    """`tensor` as a frozen parameter.

    ``nn.Parameter(q)`` detaches a subclass, and the first such call makes torch import its distributed
    tensors: 40 MB and up to seconds that loading and running a model do not need.
    """
    if not isinstance(tensor, QuantizedTensor):
        return nn.Parameter(tensor, requires_grad=False)
    tensor._is_param = True
    return tensor  # type: ignore[return-value]


def config_of(weight: QuantizedTensor) -> dict[str, Any]:
    """The ``comfy_quant`` dict that ComfyUI itself would write for `weight`.

    CheckpointError for a layout that no checkpoint format holds, or a transposed or reshaped weight.
    """
    params = weight._layout_params
    if params.get("transposed") or weight._qdata.dim() != 2:
        raise CheckpointError(f"{weight} is a view; only plain [N, K] weights can be saved")
    if weight._layout_type == "BlockWiseINT8Layout":
        return {"format": BLOCKWISE, "group_size": params["block_size"]}
    if weight._layout_type not in ("TensorWiseINT8Layout", "AxisWiseINT8Layout"):
        raise CheckpointError(f"layout {weight._layout_type} has no checkpoint format")
    conf: dict[str, Any] = {"format": TENSORWISE}
    if params.get("rotation"):
        conf.update(convrot=True, convrot_groupsize=params["rotation"])
    return conf


def tensors_of(weight: QuantizedTensor) -> dict[str, torch.Tensor]:
    """The stored tensors of a quantized weight by leaf name: weight, weight_scale, comfy_quant, ...

    Per-tensor scales become [1, 1] and per-row ones [N, 1], float32: the shapes that load everywhere.
    """
    params, conf = weight._layout_params, config_of(weight)
    scale = params["scale"].float()
    if conf["format"] == TENSORWISE:
        scale = scale.reshape(-1, 1)
    out = {"weight": weight._qdata, "weight_scale": scale, "comfy_quant": encode_config(conf)}
    for leaf in ("input_scale", "pre_quant_scale"):
        if leaf in params:
            out[leaf] = params[leaf]
    return out


def encode_config(conf: dict[str, Any]) -> torch.Tensor:
    """`conf` as the uint8 tensor of its JSON."""
    return torch.frombuffer(bytearray(json.dumps(conf).encode("utf-8")), dtype=torch.uint8)
