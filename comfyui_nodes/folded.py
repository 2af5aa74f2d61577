"""The folds of a model that ComfyUI has loaded: its file's header has them, ComfyUI has names of its own."""

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from convert_to_quant.files.checkpoint import open_checkpoint
from convert_to_quant.folding.changes import folds_of_changes
from convert_to_quant.folding.coding import KEY, decoded
from convert_to_quant.folding.factors import Factors, Folds
from convert_to_quant.folding.inputs import FoldedInput
from convert_to_quant.names.prefixes import checkpoint_forms

from .folded_patches import INSTEAD
from .model_state import loaded_files

_Stored = tuple[list[FoldedInput], list[Factors]]
_Shapes = Mapping[str, tuple[int, ...]]


def folds_of(patcher: Any) -> Folds | None:
    """Return the folds of a patcher's model, by its names; None where its files have none.

    RuntimeError where a file is folded and ComfyUI calls its layers otherwise than the file.
    """
    stored = {path: found for path in loaded_files(patcher) if (found := _read(path)) is not None}
    if not stored:
        return None
    shapes = {name: tuple(t.shape) for name, t in patcher.model.state_dict().items()}
    inputs: list[FoldedInput] = []
    factors: list[Factors] = []
    for path, (places, values) in stored.items():
        placed = [_placed(one, shapes) for one in places]
        # Of a checkpoint with all parts of a pipeline, each patcher has its own.
        if None in placed and not patcher.cached_patcher_init[0].__name__.startswith("load_checkpoint"):
            raise RuntimeError(
                f"{os.path.basename(path)} is folded, and ComfyUI names its layers otherwise: no LoRA can be "
                f"fitted to it: {INSTEAD}"
            )
        for one, made in zip(placed, values, strict=True):
            if one is not None:
                inputs.append(one)
                factors.append(made)
    return folds_of_changes(inputs, factors)


def is_folded(patcher: Any) -> bool:
    """Tell whether a file of a patcher's model is folded."""
    return any(_read(path) is not None for path in loaded_files(patcher))


def _read(path: str) -> _Stored | None:
    if not path.endswith(".safetensors") or not os.path.isfile(path):
        return None
    state = os.stat(path)
    return _decoded(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=16)
def _decoded(path: str, changed: int, size: int) -> _Stored | None:
    with open_checkpoint(path) as file:
        return decoded(file.metadata) if KEY in file.metadata else None


def _placed(one: FoldedInput, shapes: _Shapes) -> FoldedInput | None:
    """Return an input under ComfyUI's names: with what ComfyUI puts before them, not the checkpoint."""
    known = min(one.tensors())
    for form, _ in checkpoint_forms(known):
        old = known.removesuffix(form)
        found = [n for n in shapes if n == form or n.endswith(f".{form}")]
        moved = [one.moved(old, n.removesuffix(form)) for n in found]
        complete = [m for m in moved if m.tensors() <= shapes.keys()]
        # Of two text encoders with the same names, the one whose layers end where the input does.
        chosen = complete if len(complete) < 2 else [m for m in complete if _is_whole(m, shapes)]
        if len(chosen) == 1:
            return chosen[0]
    return None


def _is_whole(one: FoldedInput, shapes: _Shapes) -> bool:
    return any(shapes[f"{c.layer}.weight"][1:] == (c.start + one.width,) for c in one.columns)
