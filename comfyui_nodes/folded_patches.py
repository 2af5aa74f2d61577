"""ComfyUI's patches of a model as those of the folded one."""

import logging
import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import torch

from convert_to_quant.folding.changes import MADE_FOR, LayerFold, folded_change, layer_fold
from convert_to_quant.folding.factors import Folds

logger = logging.getLogger("convert_to_quant.nodes")

INSTEAD = (
    "merge it while converting (convert_to_quant --merge-lora), or use a file without folds (--fold off)"
)
_MARK = "_made_for_folded"


def mark(tensors: Any, metadata: Any) -> None:
    """Remember of a LoRA file's tensors that they were made for a folded model, where its header says so."""
    if isinstance(metadata, dict) and MADE_FOR in metadata and isinstance(tensors, dict):
        for tensor in tensors.values():
            setattr(tensor, _MARK, True)


def is_marked(patch: Any) -> bool:
    """Tell whether a patch, or any of the tensors in it, was made for a folded model."""
    return any(getattr(t, _MARK, False) for t in _tensors(patch))


def folded_patches(folds: Folds, patches: dict[Any, Any]) -> dict[Any, tuple[Any, Any]]:
    """Return ComfyUI's patches of a model as those of the folded one: key -> (key that it is from, patch).

    A key is a tensor's name, or (name, (axis, start, count) or None) or that and a function of what is added.
    RuntimeError for a kind of change that cannot be folded.
    """
    made: dict[Any, tuple[Any, Any]] = {}
    for key, patch in patches.items():
        name = key if isinstance(key, str) else key[0]
        if not _concerns(folds, name) or is_marked(patch) or not _changes(name, patch):
            made[key] = key, patch
            continue
        offset, function = (None, None) if isinstance(key, str) else (*key[1:], None)[:2]
        if offset is not None and offset[0] != 0:
            raise RuntimeError(f"a change of some columns of {name} cannot be folded: {INSTEAD}")
        first = offset[1] if offset is not None else 0
        weight, bias = _folded(folds, name, patch, first, function or (lambda rows: rows))
        made[(name, offset) if function else key] = key, weight
        if bias is not None:
            # With its rows in the key, for q, k and v of one weight have a change of its bias each.
            made[f"{name.removesuffix('weight')}bias", (0, first, len(bias))] = key, ("diff", (bias,))
    return made


def _concerns(folds: Folds, name: str) -> bool:
    return name in folds.tensors or (name.endswith(".weight") and bool(folds.means(name[: -len(".weight")])))


def _tensors(patch: Any) -> Iterable[torch.Tensor]:
    if isinstance(patch, torch.Tensor):
        yield patch
    elif isinstance(patch, list | tuple | dict):
        for part in patch.values() if isinstance(patch, dict) else patch:
            yield from _tensors(part)
    elif hasattr(patch, "weights"):
        yield from _tensors(patch.weights)


def _changes(name: str, patch: Any) -> bool:
    """Tell a change that is added from what merges and rescales models, which is left as it is, and said."""
    if hasattr(patch, "calculate_weight") or (isinstance(patch, tuple) and patch[0] in ("diff", "set")):
        return True
    if isinstance(patch, tuple) and len(patch) == 1 and isinstance(patch[0], torch.Tensor):
        return True
    _say_once(name)
    return False


@lru_cache(maxsize=1)
def _say_once(name: str) -> None:
    logger.warning(
        "a folded model is merged or rescaled (%s): right only with models that are folded alike; use files "
        "without folds (convert_to_quant --fold off) for merges",
        name,
    )


def _folded(
    folds: Folds, name: str, patch: Any, first: int, rows: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[Any, torch.Tensor | None]:
    if hasattr(patch, "calculate_weight"):
        return _adapter(folds, name, patch, first, rows)
    kind, values = ("diff", patch) if len(patch) == 1 else patch
    if kind != "diff" or (len(values) > 1 and values[1].get("pad_weight")):
        raise RuntimeError(f"a LoRA sets {name} anew, which cannot be folded: {INSTEAD}")
    change, bias = folded_change(folds, name, rows(values[0]), first)
    return ("diff", (change.to(values[0].dtype),)), bias


def _adapter(
    folds: Folds, name: str, patch: Any, first: int, rows: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[Any, torch.Tensor | None]:
    """Fold one of ComfyUI's adapters: (up, down, alpha, mid, dora, reshape) of a plain LoRA."""
    parts = patch.weights
    if patch.name != "lora" or any(part is not None for part in parts[3:]) or not name.endswith(".weight"):
        kind = "DoRA" if patch.name == "lora" and parts[4] is not None else patch.name
        raise RuntimeError(f"{os.path.basename(name)}: a {kind} adapter cannot be folded ({name}): {INSTEAD}")
    up, down, alpha = parts[:3]
    up, down = rows(up.flatten(1)), down.flatten(1)
    fold = layer_fold(folds, name[: -len(".weight")], len(up), down.shape[1], first) or LayerFold()
    made_up, made_down, bias = fold.pair(up, down)
    if bias is not None and alpha is not None:
        bias *= alpha / down.shape[0]
    pair = made_up.to(up.dtype), made_down.to(down.dtype)
    return type(patch)(patch.loaded_keys, (*pair, alpha, None, None, None)), bias
