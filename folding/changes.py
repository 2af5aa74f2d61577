"""Changes that were made for an unfolded model, as changes of the folded one.

A fold makes W' = diag(1/s) W diag(t) of a weight and b' = (b + W mu) / s of its bias. A change D of W is
therefore diag(1/s) D diag(t) in W' and D mu / s in b': of low rank where it was, and linear in its strength.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..formats.errors import CheckpointError
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


@dataclass(frozen=True)
class LayerFold:
    """What the folds of a model do to a change of a layer, or of some rows of it; float32, None for nothing.

    columns: t, and mean: mu, of its inputs, [K]. rows: 1 / s of its rows, bias_rows: of its bias's, [N].
    """

    columns: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    bias_rows: torch.Tensor | None = None

    def pair(
        self, up: torch.Tensor, down: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return a change up [N, r] @ down [r, K] as a folded one, and the bias's [N] or None; float32."""
        up, down = up.float(), down.float()
        bias = None if self.mean is None else _times(up @ (down @ self.mean.to(down)), self.bias_rows)
        made_up = up if self.rows is None else up * self.rows.to(up)[:, None]
        return made_up, down if self.columns is None else down * self.columns.to(down), bias

    def change(self, change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return a whole change [N, K] as a folded one, and the bias's [N] or None; float32."""
        made = change.float()
        bias = None if self.mean is None else _times(made @ self.mean.to(made), self.bias_rows)
        made = made if self.rows is None else made * self.rows.to(made)[:, None]
        return made if self.columns is None else made * self.columns.to(made), bias


def _times(values: torch.Tensor, factors: torch.Tensor | None) -> torch.Tensor:
    return values if factors is None else values * factors.to(values)


def layer_fold(folds: Folds, layer: str, rows: int, columns: int, first: int = 0) -> LayerFold | None:
    """Return what folds do to a change of a layer's rows from `first` on; None where that is nothing.

    CheckpointError where a fold reads columns that the layer has not.
    """
    weight, bias = f"{layer}.weight", f"{layer}.bias"
    change, means = folds.tensors.get(weight), folds.means(layer)
    if change is None and not means:
        return None
    read = [folds.inputs[i].width + c.start for i, c in change.columns] if change is not None else []
    read += [c.start + len(values) for c, values in means]
    if max(read, default=0) > columns:
        raise CheckpointError(f"{KEY} in a file's metadata: {layer} has {columns} inputs, not {max(read)}")
    mean = torch.zeros(columns) if means else None
    for c, values in means:
        mean[c.start : c.start + len(values)] += values  # type: ignore[index]  # there are means
    scaled = change is not None and change.columns
    return LayerFold(
        folds.columns(weight, torch.ones(1, columns))[0] if scaled else None,
        mean,
        folds.quotients(weight, rows, first),
        folds.quotients(bias, rows, first),
    )


def folded_change(
    folds: Folds, name: str, change: torch.Tensor, first: int = 0
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return a tensor's whole change as a folded one, float32, and that of its layer's bias, None for none.

    change: of the tensor's shape, or of its rows from `first` on.
    """
    layer, _, leaf = name.rpartition(".")
    if leaf == "weight" and change.dim() == 2:
        fold = layer_fold(folds, layer, change.shape[0], change.shape[1], first)
        return (change.float(), None) if fold is None else fold.change(change)
    return folds.divided(name, change.float().clone(), first, shift=False), None
