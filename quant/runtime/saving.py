"""Writing a model to a checkpoint: exactly the tensors that ComfyUI itself would save."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from ...files.save import save_tensors
from ...formats import CheckpointError
from ...formats.names import JOB_KEY, tensor_name
from ...names.keymap import KeyMap, map_for
from ..tensor import QuantizedTensor
from .rows import join_rows, swap_halves
from .stored import stored_layer

_LAYERS = "_quantization_metadata"


def save_quantized(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    prefix: str = "",
    metadata: dict[str, str] | None = None,
    quant_metadata: bool = False,
    comfyui_names: bool = False,
) -> Path:
    """Write `model`'s state dict as safetensors; returns the path.

    A QuantizedTensor ``X.weight`` becomes X.weight (int8), X.weight_scale ([N, 1], [1, 1] or one per block),
    X.comfy_quant and, where it has them, X.input_scale and X.pre_quant_scale; everything else is
    written as it is, tied parameters once.
    metadata: header strings; None keeps those of the checkpoint that `load_quantized` read.
    quant_metadata: also list the layers in the header (``_quantization_metadata``).
    comfyui_names: write ComfyUI's names for a diffusers model (fusing q, k, v), by the table of its class.

    One tensor at a time is brought to the CPU. The file has its name only when it is whole and synced.
    CheckpointError for meta parameters or what no format can hold; the old file is then untouched.
    """
    table = map_for(model) if comfyui_names else KeyMap(())
    tensors = _state(model)
    meta = [n for n, t in tensors.items() if t.is_meta]
    if meta:
        raise CheckpointError(
            f"{len(meta)} tensors are on the meta device, first {meta[0]!r}: load the model first"
        )
    kept = metadata if metadata is not None else getattr(model, "checkpoint_metadata", {})
    return write_tensors(
        ((prefix + name, tensor) for name, tensor in _renamed(tensors, table)), path, kept, quant_metadata
    )


def plain_state_dict(model: nn.Module | Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict of ordinary tensors, for programs that save or send tensors as bytes::

        safetensors.torch.save_file(plain_state_dict(model), "model-int8.safetensors")
        language_model.save_pretrained(folder, state_dict=plain_state_dict(language_model))

    model: a module, or a state dict of one. A quantized ``X.weight`` becomes the tensors of its format
    (X.weight, X.weight_scale, X.comfy_quant, ...), as in a checkpoint; what is plain stays under its name.
    They share the model's memory; tied parameters of a module come once. CheckpointError for what no format
    can hold.
    """
    state = _state(model) if isinstance(model, nn.Module) else model
    return _plain(state.items(), {})


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    seen: set[int] = set()
    out = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            out[name] = tensor
    return out


def _renamed(tensors: dict[str, torch.Tensor], table: KeyMap) -> Iterator[tuple[str, torch.Tensor]]:
    for name, mapped in table.inverse(tensors).items():
        whole = join_rows([tensors[t] for t in mapped.targets], name)
        yield name, swap_halves(whole, name) if mapped.swapped(tensors) else whole


def write_tensors(
    tensors: Iterable[tuple[str, torch.Tensor]],
    path: str | os.PathLike[str],
    metadata: dict[str, str] | None = None,
    quant_metadata: bool = False,
) -> Path:
    """Write named tensors, quantized ones in the checkpoint contract's form, to `path`, whole or not at all.

    `tensors` is walked once and its references kept until the end; each is copied to the CPU only while
    its bytes are written.
    """
    layers: dict[str, dict] = {}
    return save_tensors(path, _plain(tensors, layers), _metadata(metadata or {}, layers, quant_metadata))


def _plain(tensors: Iterable[tuple[str, torch.Tensor]], layers: dict[str, dict]) -> dict[str, torch.Tensor]:
    """Return the stored tensors by name; the ``comfy_quant`` objects go to `layers`."""
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in tensors:
        parts = _stored(name, tensor, layers)
        clash = plain.keys() & parts.keys()
        if clash:
            raise CheckpointError(
                f"two tensors would be named {sorted(clash)[0]!r}; rename the one that is no part of a "
                "quantized layer"
            )
        plain.update(parts)
    return plain


def _stored(name: str, tensor: torch.Tensor, layers: dict) -> dict[str, torch.Tensor]:
    if not isinstance(tensor, QuantizedTensor):
        return {name: tensor.detach()}
    layer, _, leaf = name.rpartition(".")
    if leaf != "weight":
        raise CheckpointError(
            f"{name} is quantized, but only tensors named .weight have a checkpoint form; dequantize it first"
        )
    form, tensors = stored_layer(tensor)
    layers[layer] = form.config()
    return {tensor_name(layer, k): v for k, v in tensors.items()}


def _metadata(given: dict[str, str], layers: dict, listed: bool) -> dict[str, str]:
    """Return the given strings, less those that tell of another file: whose result it is, and its layers.

    A list of layers, if it is wanted, is made anew, for it overrides the tensors.
    """
    out = {k: str(v) for k, v in given.items() if k not in (_LAYERS, JOB_KEY)}
    if listed or _LAYERS in given:
        out[_LAYERS] = json.dumps({"format_version": "1.0", "layers": layers})
    return out
