"""Weights that wait on the disk as they are stored, and come into memory layer by layer while a model runs.

accelerate's own ``disk_offload`` writes what a tensor's ``numpy()`` gives: of a quantized weight its floats.
This is the same with accelerate's hooks and a checkpoint of ours in place of its files.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from ..files.checkpoint import Checkpoint, open_checkpoint
from ..formats import ConversionError
from ..formats.names import CONFIG, WEIGHT, tensor_name
from ..quant.runtime import save_quantized
from ..quant.runtime.stored import companions, read_weight
from .stored import stored_layers, without_companions

_FILE = "offloaded.safetensors"


class StoredWeights(Mapping[str, torch.Tensor]):
    """The parameters and buffers of a model by name, in a checkpoint; each is read when it is asked for."""

    def __init__(self, checkpoint: Checkpoint, model: nn.Module):
        self._checkpoint = checkpoint
        self._layers = stored_layers(checkpoint.tensors)
        self._dtypes: dict[str, torch.dtype] = {}
        self._stored: dict[str, str] = {n: n for n in without_companions(checkpoint.tensors)}
        first: dict[int, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._dtypes[name] = parameter.dtype
            # Tied parameters are stored once and asked for under all their names.
            self._stored[name] = first.setdefault(id(parameter), name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, name: str) -> torch.Tensor:
        name = self._stored[name]
        value, layer = self._checkpoint.read(name, huge_pages=False), name.rpartition(".")[0]
        if layer not in self._layers or name != tensor_name(layer, WEIGHT):
            return value
        there = self._checkpoint.tensors
        found = {s: n for s in companions() if (n := tensor_name(layer, s)) in there}
        tensors = {s: self._checkpoint.read(n) for s, n in found.items()}
        return read_weight(tensors.pop(CONFIG), {WEIGHT: value, **tensors}, layer, self._dtypes[name])[1]


def disk_offload(
    model: nn.Module, folder: str | Path, execution_device: str | torch.device | None = None
) -> Path:
    """Keep the weights of `model` on the disk and bring each layer's to a device for as long as it runs::

        disk_offload(transformer, "offload", execution_device="cuda")

    folder: where they are written, in one file as `save_quantized` writes it; an existing one is replaced.
    execution_device: None is where the first parameter is. Returns the file, which has to stay while the
    model is used. ConversionError without accelerate, or for a weight that no format holds.
    """
    try:
        from accelerate.big_modeling import AlignDevicesHook, add_hook_to_module, attach_align_device_hook
    except ImportError as e:
        raise ConversionError("disk_offload works with accelerate's hooks: pip install accelerate") from e
    device = torch.device(execution_device or next(model.parameters()).device)
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = save_quantized(model, Path(folder) / _FILE)
    stored = StoredWeights(open_checkpoint(path), model)
    add_hook_to_module(model, AlignDevicesHook(io_same_device=True), append=True)
    attach_align_device_hook(model, execution_device=device, offload=True, weights_map=stored)
    return path
