"""What the folds of a checkpoint do to changes of the model that was loaded from it, by its own names."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from ...folding.changes import LayerFold, layer_fold, stored_folds
from ...folding.coding import KEY
from ...folding.factors import Folds
from ...names.keymap import IDENTITY, Mapped, map_for
from ...names.prefixes import CHECKPOINT

logger = logging.getLogger(__name__)

FOLDS = "checkpoint_folds"
"""The attribute of a loaded model that holds what `module_folds` found."""

Mapper = Callable[[str], Mapped]


def module_folds(
    model: nn.Module, metadata: Mapping[str, str], key_map: Mapper | None = None
) -> dict[str, LayerFold]:
    """Return what a file's folds do to a change of each linear layer of `model`, by the layer's name.

    metadata: of the file's header. key_map: its names to the model's; None takes the table of the model's
    class or plain names, whichever fits. Layers that the model has not are left out, with a warning; {} for a
    file without folds.
    """
    if KEY not in metadata:
        return {}
    folds = stored_folds(metadata, ())
    assert folds is not None
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters(remove_duplicate=False)}
    layers = sorted({n.rpartition(".")[0] for n in folds.tensors})
    maps = [key_map] if key_map is not None else [IDENTITY, map_for(model)]
    options = [dict(_placed(layers, prefix, one, shapes)) for prefix in CHECKPOINT for one in maps]
    placed = max(options, key=len)
    linear = [n.removesuffix(".weight") for n, changed in folds.tensors.items() if changed.columns]
    lost = [layer for layer in linear if layer not in placed]
    if lost:
        logger.warning(
            "the file is folded, and %d of %d folded layers, as %s, have another name in %s: LoRAs cannot be "
            "fitted to them; merge LoRAs while converting (convert_to_quant --merge-lora)",
            len(lost),
            len(linear),
            lost[0],
            type(model).__name__,
        )
    found: dict[str, LayerFold] = {}
    for layer, mapped in placed.items():
        found |= _split(folds, layer, mapped, shapes)
    return found


def _placed(
    layers: list[str], prefix: str, key_map: Mapper, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Mapped]]:
    for layer in layers:
        if layer.startswith(prefix):
            mapped = key_map(f"{layer[len(prefix) :]}.weight")
            if mapped.targets and all(len(shapes.get(t, ())) == 2 for t in mapped.targets):
                yield layer, mapped


def _split(
    folds: Folds, layer: str, mapped: Mapped, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, LayerFold]:
    """Return a layer's fold for each of the modules that its rows are split into."""
    counts = [shapes[t][0] for t in mapped.targets]
    whole = layer_fold(folds, layer, sum(counts), shapes[mapped.targets[0]][1])
    if whole is None:
        return {}
    shaped = {t: _Shape(shapes[t]) for t in mapped.targets}
    if mapped.swapped(shaped):
        whole = _by_rows(whole, lambda rows: rows.roll(len(rows) // 2))
    found, start = {}, 0
    for target, count in zip(mapped.targets, counts, strict=True):
        part = slice(start, start + count)
        found[target.removesuffix(".weight")] = _by_rows(whole, partial(_taken, part))
        start += count
    return found


def _taken(part: slice, rows: torch.Tensor) -> torch.Tensor:
    return rows[part].clone()


class _Shape:
    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape


def _by_rows(fold: LayerFold, change: Callable[[torch.Tensor], torch.Tensor]) -> LayerFold:
    rows, bias = (None if t is None else change(t) for t in (fold.rows, fold.bias_rows))
    return replace(fold, rows=rows, bias_rows=bias)
