"""The tensors of one quantized layer <-> its QuantizedTensor."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ...formats import CheckpointError, Format, Tensors, companion_suffixes, read_format
from ...formats.config import checked_config, decode_config, encode_config
from ...formats.names import CONFIG
from ..layouts import weight_layout
from ..layouts.weight import described, loaded
from ..tensor import QuantizedTensor


def companions() -> list[str]:
    """Return the suffixes of all that may stand beside ``weight`` in a quantized layer."""
    return [*companion_suffixes(), CONFIG]


def layer_format(raw: torch.Tensor | Mapping[str, Any], tensors: Tensors, layer: str) -> Format:
    """Read how `layer` is stored from its ``comfy_quant`` (uint8 JSON, or an object already) and its tensors.

    CheckpointError, naming the layer, for what is no format that this runtime reads, or does not fit.
    """
    where = f"{layer}.{CONFIG}"
    if isinstance(raw, torch.Tensor):
        config = decode_config(bytes(raw.cpu().reshape(-1).view(torch.uint8).numpy()), where)
    else:
        config = checked_config(raw, where)
    return read_format(config, tensors, layer)


def build_weight(form: Format, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> QuantizedTensor:
    """Return a layer's weight [N, K] from its stored tensors by suffix (``weight`` among them).

    form: as `layer_format` read it from these tensors. dtype: the logical dtype. A bank of experts [E, N, K]
    comes as the matrix of all its rows [E N, K].
    """
    if form.experts:
        infos = form.matrix(described(tensors))
        tensors = {s: t.reshape(infos[s].shape) for s, t in tensors.items()}
    return QuantizedTensor.of(loaded(form, tensors, dtype), weight_layout(form.layout))


def read_weight(
    raw: Any, tensors: Mapping[str, torch.Tensor], layer: str, dtype: torch.dtype
) -> tuple[Format, QuantizedTensor]:
    """Return the format of `layer` and its weight, from ``comfy_quant`` and the tensors by suffix.

    As `layer_format` and `build_weight`, with their errors.
    """
    form = layer_format(raw, described(tensors), layer)
    return form, build_weight(form, tensors, dtype)


def as_parameter(tensor: torch.Tensor) -> nn.Parameter:
    """Return `tensor` as a frozen parameter.

    ``nn.Parameter(q)`` detaches a subclass, and the first such call makes torch import its distributed
    tensors: 40 MB and up to seconds that loading and running a model do not need.
    """
    if not isinstance(tensor, QuantizedTensor):
        return nn.Parameter(tensor, requires_grad=False)
    tensor._is_param = True
    return tensor  # type: ignore[return-value]


def stored_layer(weight: QuantizedTensor, experts: int = 0) -> tuple[Format, dict[str, torch.Tensor]]:
    """Return the format of a weight and its stored tensors by suffix, ``comfy_quant`` among them.

    One of three axes is a bank of experts, as is the matrix of the rows of so many. CheckpointError for a
    layout that no checkpoint format holds, or a transposed or otherwise reshaped weight.
    """
    layout = weight_layout(weight._layout_type)
    if weight._layout_params.get("transposed") or weight.dim() not in (2, 3):
        raise CheckpointError(f"{weight} is a view; only plain [N, K] weights can be saved: dequantize it")
    rows: torch.Tensor = weight
    if weight.dim() == 3:
        experts, rows = weight.shape[0], weight.view(-1, weight.shape[-1])
    if not isinstance(rows, QuantizedTensor):
        raise CheckpointError(
            f"{weight} is a bank of experts that cannot be seen as one matrix: dequantize it"
        )
    form, tensors = layout.store(rows._qdata, rows._layout_params)
    if experts:
        form = replace(form, experts=experts)
        stored = form.stored(tuple(rows.shape))  # type: ignore[arg-type]
        tensors = {t.suffix: tensors[t.suffix].reshape(t.shape) for t in stored}
    config = torch.frombuffer(bytearray(encode_config(form.config())), dtype=torch.uint8)
    ordered = [s for s in tensors if s not in form.extra]
    return form, {**{s: tensors[s] for s in ordered}, CONFIG: config, **{s: tensors[s] for s in form.extra}}


def tensors_of(weight: QuantizedTensor, experts: int = 0) -> dict[str, torch.Tensor]:
    """Return the stored tensors of a quantized weight by suffix: weight, weight_scale, comfy_quant, ..."""
    return stored_layer(weight, experts)[1]
