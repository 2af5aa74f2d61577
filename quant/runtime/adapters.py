"""LoRAs in PEFT's names on a model whose file is folded: fitted before diffusers adds them as adapters."""

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ...folding.changes import LayerFold
from ...formats import CheckpointError
from .folds import FOLDS, Mapper, module_folds

logger = logging.getLogger(__name__)

_PART = re.compile(r"(.+)\.lora_([AB])(\.default)?\.(weight|bias)")
_LOAD = "load_lora_adapter"
_INSTEAD = "merge it while converting (convert_to_quant --merge-lora), or apply_lora(model, FILE) adds it"


def fold_lora(
    state: Mapping[str, torch.Tensor], model: nn.Module, prefix: str = ""
) -> dict[str, torch.Tensor]:
    """Return a LoRA that was made for an unfolded model as one for `model`, loaded from a folded file::

        load_quantized(transformer, "model-folded.safetensors")
        state = fold_lora(load_file("style.safetensors"), transformer, "transformer.")

    state: X.lora_A.weight and X.lora_B.weight of modules of the model, after `prefix`; other keys are left as
    they are. Where means are folded each pair gets an X.lora_B.bias. A model that is not folded takes the
    LoRA as it is. CheckpointError for other changes of folded layers.

    `load_lora_adapter` of a diffusers model, and so ``pipe.load_lora_weights``, does it by itself.
    """
    folds: dict[str, LayerFold] = model.__dict__.get(FOLDS) or {}
    pairs: dict[str, dict[str, str]] = {}
    for key in state if folds else ():
        match = _PART.fullmatch(key) if key.startswith(prefix) else None
        if match is not None and match[4] == "weight":
            pairs.setdefault(match[1], {})[match[2]] = key
        elif key.startswith(prefix) and _is_of(key[len(prefix) :], folds):
            raise CheckpointError(
                f"LoRA key {key!r} changes a folded layer, and is neither lora_A nor lora_B: {_INSTEAD}"
            )
    found = {module: folds.get(module[len(prefix) :]) for module in pairs}
    biased = any(fold is not None and fold.mean is not None for fold in found.values())
    made = dict(state)
    for module, pair in pairs.items():
        if pair.keys() != {"A", "B"}:
            raise CheckpointError(f"LoRA {module!r} has lora_{', '.join(pair)} alone; it needs A and B")
        _fit(made, pair["A"], pair["B"], found[module], biased)
    return made


def _is_of(key: str, folds: Mapping[str, LayerFold]) -> bool:
    """Tell whether a key is of a folded module."""
    while key and key not in folds:
        key = key.rpartition(".")[0]
    return bool(key)


def _fit(made: dict[str, torch.Tensor], down: str, up: str, fold: LayerFold | None, biased: bool) -> None:
    was, by, bias = made[up], made[down], None
    if fold is not None:
        if was.dim() != 2 or by.dim() != 2:
            raise CheckpointError(f"LoRA key {up!r} is {list(was.shape)}, no matrix: {_INSTEAD}")
        new_up, new_down, bias = fold.pair(was, by)
        made[up], made[down] = new_up.to(was.dtype), new_down.to(by.dtype)
    if biased:
        # PEFT gives all adapters a bias, or none.
        bias = torch.zeros(len(was)) if bias is None else bias
        made[f"{up.removesuffix('weight')}bias"] = bias.to(was.device, was.dtype)


def remember_folds(model: nn.Module, metadata: Mapping[str, str], key_map: Mapper | None = None) -> None:
    """Keep with a model what the folds of its file do to changes of it, for LoRAs that it is given.

    metadata: of the file's header; key_map: as `module_folds`.
    """
    model.__dict__[FOLDS] = module_folds(model, metadata, key_map)
    fit_adapters(model)


def fit_adapters(model: nn.Module) -> None:
    """Let a diffusers model from a folded file fold what its `load_lora_adapter` is given."""
    if model.__dict__.get(FOLDS) and callable(getattr(type(model), _LOAD, None)):
        model.__dict__[_LOAD] = _Fitting(model)
    else:
        model.__dict__.pop(_LOAD, None)


class _Fitting:
    """A model's `load_lora_adapter` that folds first; a value of the model, and copied with it."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __call__(self, state: Any, prefix: str | None = "transformer", **kwargs: Any) -> Any:
        if not isinstance(state, Mapping):
            raise CheckpointError(
                "this model's file is folded, and a LoRA has to be fitted to it: give its tensors, as "
                "pipe.load_lora_weights(FILE) does, not a path"
            )
        before = f"{prefix}." if prefix else ""
        made = fold_lora(state, self.model, before)
        if len(made) > len(state) and kwargs.get("metadata"):
            kwargs["metadata"] = {**kwargs["metadata"], f"{before}lora_bias": True}
        logger.info("LoRA fitted to a folded model: %d tensors", len(made))
        return getattr(type(self.model), _LOAD)(self.model, made, prefix=prefix, **kwargs)
