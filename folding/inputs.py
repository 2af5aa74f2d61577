"""The places of a fold in a checkpoint. Imports no torch."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace

from ..names.prefixes import CHECKPOINT


@dataclass(frozen=True)
class Columns:
    """Columns [start, start + width) of a layer's weight that read the input: multiplied by t.

    bias: whether the layer has one, which takes what the mean gives.
    """

    layer: str
    start: int
    bias: bool


@dataclass(frozen=True)
class Rows:
    """Rows from `start` on of a tensor that produce the input: divided by t.

    offset: what the model adds to the values before it uses them: v becomes (v + offset) / t - offset.
    shifts: whether the mean is taken off them first. flat: they are elements of a table, in order of memory.
    """

    tensor: str
    start: int
    offset: float = 0.0
    shifts: bool = False
    flat: bool = False


@dataclass(frozen=True)
class FoldedInput:
    """One input of `width` channels: the columns that read it, the rows that produce it.

    smooth, mean: whether its channels are scaled, and whether its mean is taken off. repeats, head: the input
    consists of heads of `head` channels, of which `repeats` in a row come from the same rows; 1 and 0 where
    each channel has rows of its own.

    A layer's columns may have a mean of one input and factors of another, of all blocks: the mean, in
    unscaled channels, stands first in a list of inputs.
    """

    width: int
    columns: tuple[Columns, ...]
    rows: tuple[Rows, ...]
    smooth: bool
    mean: bool
    repeats: int = 1
    head: int = 0

    @property
    def factors(self) -> int:
        """The number of factors: the rows that produce the input."""
        return self.width // self.repeats

    def moved(self, old: str, new: str) -> FoldedInput:
        """Return it with another prefix before all names."""
        columns = tuple(replace(c, layer=new + c.layer.removeprefix(old)) for c in self.columns)
        rows = tuple(replace(r, tensor=new + r.tensor.removeprefix(old)) for r in self.rows)
        return replace(self, columns=columns, rows=rows)

    def tensors(self) -> set[str]:
        """Return the names of all tensors that the fold changes."""
        found = {f"{c.layer}.weight" for c in self.columns} | {r.tensor for r in self.rows}
        if self.mean:
            found |= {f"{c.layer}.bias" for c in self.columns}
        return found


@dataclass(frozen=True)
class TensorFolds:
    """What the folds of a checkpoint do to one tensor, each with its input's number.

    columns: those that are multiplied. added: the columns of its layer whose product with the mean is added,
    for a bias. rows: those that are divided, after that.
    """

    columns: tuple[tuple[int, Columns], ...] = ()
    added: tuple[tuple[int, Columns], ...] = ()
    rows: tuple[tuple[int, Rows], ...] = ()


def by_tensor(inputs: Sequence[FoldedInput]) -> dict[str, TensorFolds]:
    """Return what is done to each tensor. ValueError where two inputs claim the same columns or rows."""
    found: dict[str, TensorFolds] = {}
    for number, one in enumerate(inputs):
        for c in one.columns:
            weight = found.get(f"{c.layer}.weight", TensorFolds())
            found[f"{c.layer}.weight"] = replace(weight, columns=(*weight.columns, (number, c)))
            if one.mean:
                bias = found.get(f"{c.layer}.bias", TensorFolds())
                found[f"{c.layer}.bias"] = replace(bias, added=(*bias.added, (number, c)))
        for r in one.rows:
            tensor = found.get(r.tensor, TensorFolds())
            found[r.tensor] = replace(tensor, rows=(*tensor.rows, (number, r)))
    for name, folds in found.items():
        for kind in ("smooth", "mean"):
            columns = [(c.start, inputs[i].width) for i, c in folds.columns if getattr(inputs[i], kind)]
            rows = [(r.start, inputs[i].factors) for i, r in folds.rows if getattr(inputs[i], kind)]
            _require_apart(name, columns)
            _require_apart(name, rows)
    return found


def _require_apart(name: str, spans: Iterable[tuple[int, int]]) -> None:
    end = 0
    for start, count in sorted(spans):
        if start < end:
            raise ValueError(f"{name}: two folds change the same part of it")
        end = start + count


def renamed(inputs: Sequence[FoldedInput], names: Container[str]) -> list[FoldedInput]:
    """Give places the prefix of a file's `names`, should it have another than when it was written."""
    known = min(inputs[0].tensors()) if inputs else ""
    bare = next((known[len(p) :] for p in CHECKPOINT if p and known.startswith(p)), known)
    old = known.removesuffix(bare)
    new = next((p for p in CHECKPOINT if p + bare in names), old)
    return list(inputs) if known in names or new == old else [one.moved(old, new) for one in inputs]
