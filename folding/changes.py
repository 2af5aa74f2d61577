"""Changes that were made for an unfolded model, as changes of the folded one.

A fold makes W' = diag(1/s) W diag(t) of a weight and b' = (b + W mu) / s of its bias. A change D of W is
therefore diag(1/s) D diag(t) in W' and D mu / s in b': of low rank where it was, and linear in its strength.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import torch

from .coding import KEY, decoded
from .factors import Factors, Folds
from .inputs import FoldedInput, renamed

MADE_FOR = "convert_to_quant.folded_for"
"""The metadata key of a LoRA file whose changes are those of a folded model: the model's file name."""


def stored_folds(metadata: Mapping[str, str], names: Container[str]) -> Folds | None:
    """Return the folds that a header tells of, under the prefix that `names` have; None without any.

    They are for changes: what means give of the weights themselves is not known. CheckpointError for a text
    that is no fold.
    """
    if KEY not in metadata:
        return None
    inputs, factors = decoded(metadata)
    return folds_of_changes(renamed(inputs, names), factors)


def folds_of_changes(inputs: Sequence[FoldedInput], factors: Sequence[Factors]) -> Folds:
    """Return folds that are for changes alone."""
    return Folds(inputs, factors, _unknown)


def _unknown(number: int, layer: str) -> torch.Tensor:
    raise AssertionError("what means give is made of a change here, not of the weight")


def folded_pair(
    folds: Folds, layer: str, up: torch.Tensor, down: torch.Tensor, first: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return a layer's change up @ down as a folded one: up, down, and the bias's change, None for none.

    up: [n, r], for the rows of the weight from `first` on. down: [r, K]. Results are float32, the bias [n];
    the arguments stay as they are.
    """
    up, down = up.float(), down.float()
    gain = [up @ (down[:, c.start : c.start + len(m)] @ m) for c, m in folds.means(layer)]
    bias = torch.stack(gain).sum(0) if gain else None
    if bias is not None:
        bias = folds.divided(f"{layer}.bias", bias, first, shift=False)
    name = f"{layer}.weight"
    if name not in folds.tensors:
        return up, down, bias
    return folds.divided(name, up.clone(), first, shift=False), folds.columns(name, down.clone()), bias


def folded_change(
    folds: Folds, name: str, change: torch.Tensor, first: int = 0
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return a tensor's whole change as a folded one, float32, and that of its layer's bias, None for none.

    change: of the tensor's shape, or of its rows from `first` on.
    """
    layer, _, leaf = name.rpartition(".")
    means = folds.means(layer) if leaf == "weight" and change.dim() > 1 else []
    made = change.float().clone()
    gain = [made[:, c.start : c.start + len(m)] @ m for c, m in means]
    bias = torch.stack(gain).sum(0) if gain else None
    if bias is not None:
        bias = folds.divided(f"{layer}.bias", bias, first, shift=False)
    if name in folds.tensors:
        made = folds.divided(name, folds.columns(name, made), first, shift=False)
    return made, bias
