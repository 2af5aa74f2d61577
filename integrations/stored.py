"""The stored layers of a state dict, put together: integers, scales and ``comfy_quant`` become one weight."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from ..files.checkpoint import open_checkpoint
from ..files.header import read_header
from ..folding.coding import KEY
from ..formats import CheckpointError
from ..formats.names import CONFIG, SCALE, WEIGHT, tensor_name
from ..names.prefixes import DIFFUSION_MODEL
from ..quant import QuantizedTensor
from ..quant.runtime.stored import companions, read_weight

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def stored_layers(names: Iterable[str]) -> set[str]:
    """Return the layers that say how they are stored, by the names of all tensors."""
    present = set(names)
    return {
        layer
        for name in present
        if name.rpartition(".")[2] == CONFIG
        and tensor_name(layer := name.rpartition(".")[0], WEIGHT) in present
    }


def without_companions(names: Iterable[str]) -> list[str]:
    """Return the names that a model has: all but what stands beside quantized weights."""
    names = list(names)
    layers, beside = stored_layers(names), set(companions())
    return [n for n in names if not (n.rpartition(".")[2] in beside and n.rpartition(".")[0] in layers)]


class Shards:
    """The tensors of a model's files by name, for a layer whose tensors lie in two of them."""

    def __init__(self, files: Iterable[str | Path] = ()):
        self.files = [Path(f) for f in files if str(f).endswith(".safetensors")]
        self._where: dict[str, Path] | None = None

    def read(self, name: str) -> torch.Tensor | None:
        """Return a tensor, or None where no file holds it."""
        if self._where is None:
            self._where = {n: file for file in self.files for n in read_header(file)[0]}
        if name not in self._where:
            return None
        with open_checkpoint(self._where[name]) as checkpoint:
            return checkpoint.read(name, huge_pages=False)


def folds_in(files: Iterable[Path]) -> dict[str, str]:
    """Return the folds that the headers of a model's files tell of, as metadata; {} for none."""
    for file in files:
        text = read_header(file)[1].get(KEY)
        if text is not None:
            return {KEY: text}
    return {}


def put_together(
    state: Mapping[str, torch.Tensor], layers: set[str] | None = None, shards: Shards | None = None
) -> dict[str, torch.Tensor]:
    """Return the state dict with every stored layer's weight as one tensor, and its other tensors gone.

    layers: those that are stored quantized, where other files hold a part of them; None looks in `state`.
    The weights share the given tensors' memory. CheckpointError, naming the layer, for integers that nothing
    explains, and for what does not fit.
    """
    layers = stored_layers(state) if layers is None else layers
    beside, logical = companions(), _common_float(state)
    out: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        layer, _, leaf = name.rpartition(".")
        if layer in layers and leaf in beside:
            continue
        if leaf == WEIGHT and layer in layers and not isinstance(tensor, QuantizedTensor):
            tensor = _weight(state, layer, tensor, beside, logical, shards)
        elif leaf == WEIGHT:
            _refuse_unexplained(state, layer, tensor)
        out[name] = tensor
    return out


def without_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state dict of a file that holds a diffusion model alone without ComfyUI's prefix."""
    for prefix in DIFFUSION_MODEL:
        if state and all(name.startswith(prefix) for name in state):
            return {name[len(prefix) :]: tensor for name, tensor in state.items()}
    return state


def _weight(
    state: Mapping[str, torch.Tensor],
    layer: str,
    weight: torch.Tensor,
    beside: list[str],
    logical: torch.dtype,
    shards: Shards | None,
) -> torch.Tensor:
    def find(suffix: str) -> torch.Tensor | None:
        name = tensor_name(layer, suffix)
        found = state.get(name)
        return found if found is not None or shards is None else shards.read(name)

    tensors = {s: t for s in beside if (t := find(s)) is not None}
    config = tensors.pop(CONFIG)
    return read_weight(config, {WEIGHT: weight, **tensors}, layer, logical)[1]


def _refuse_unexplained(state: Mapping[str, torch.Tensor], layer: str, tensor: torch.Tensor) -> None:
    scaled = tensor_name(layer, SCALE) in state
    if tensor.dtype == torch.int8 or (tensor.dtype in FLOAT8 and scaled):
        raise CheckpointError(
            f"layer {layer} is stored as {tensor.dtype} and has no {CONFIG} that says how; where the file's "
            "header says it, convert_to_quant.runtime.load_quantized(model, path) reads the file"
        )


def _common_float(state: Mapping[str, torch.Tensor]) -> torch.dtype:
    common = (torch.float32, torch.float16, torch.bfloat16)
    counts = Counter(t.dtype for t in state.values() if t.dtype in common and t.dim() != 2)
    return counts.most_common(1)[0][0] if counts else torch.bfloat16
