"""What stands before the inputs of layers, so that a change of the inputs can be folded into it.

A vocabulary for the preset table: each `Fold` is one input, the layers that read it and what produces it.
With mu the channel means of the input and t one factor per channel, the producers are changed so that they
give (x - mu) / t, and the readers to W' = W diag(t), b' = b + W mu: the model computes what it did. Names are
relative to a block. Nothing here reads a file or imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...names.rows import ALL_ROWS, Part


@dataclass(frozen=True)
class Use:
    """A layer that reads the input.

    columns: those that do: all; the "first", as many as the layer has rows; or the "rest" after these, in a
    layer that reads attention and MLP side by side. optional: whether some blocks are without it.
    """

    layer: str
    columns: Literal["all", "first", "rest"] = "all"
    optional: bool = False


@dataclass(frozen=True)
class Norm:
    """A normalisation that ends in weight * h + bias, or (offset + weight) * h where a model says so.

    Without a bias it scales, and cannot shift.
    """

    name: str
    offset: float = 0.0


@dataclass(frozen=True)
class Modulation:
    """norm(h) * (1 + scale) + shift, with both from the rows of a Linear with a bias.

    scale, shift: their places among its rows, in units of the input's width; no shift: None.
    """

    layer: str
    scale: int
    shift: int | None


@dataclass(frozen=True)
class SharedModulation:
    """norm(h) * (1 + scale) + shift, each the sum of a Linear's rows, for all blocks, and a block's table.

    Its factors are one set for all blocks, its means a block's own. layer: the Linear, which has a bias, by
    its name outside of blocks. table: the block's tensor. scale, shift: places in both, in units of the
    input's width.
    """

    layer: str
    table: str
    scale: int
    shift: int


@dataclass(frozen=True)
class Values:
    """The value projection before an output projection: exact, because attention weights sum to one.

    rows: which of a fused layer's. head: where several heads of the input share the values, channels per
    head, where every model of the family has as many; or the tensor that has as many. shifts: whether the
    mean is taken off these; where the outputs of two attentions are added, of one. gate: a tensor of blocks
    where attention's output is multiplied with a gate before it is projected: factors pass through it, a
    mean does not.
    """

    layer: str
    rows: Part = ALL_ROWS
    head: int | str = 0
    shifts: bool = True
    gate: str = ""


@dataclass(frozen=True)
class Up:
    """The half of a gated MLP that the other half, behind its activation, is multiplied with."""

    layer: str
    rows: Part = ALL_ROWS


Producer = Norm | Modulation | SharedModulation | Values | Up


@dataclass(frozen=True)
class Fold:
    """One input: the layers that read it, and what it comes from; every producer has to be there.

    Several producers: values of several streams that attend together, or of attentions that are added.
    unless: a tensor of blocks that the fold is not for.
    """

    uses: tuple[Use, ...]
    producers: tuple[Producer, ...]
    unless: str = ""


@dataclass(frozen=True)
class BlockFolds:
    """The folds of each block whose name matches a pattern, as ``double_blocks\\.\\d+``.

    has, lacks: a tensor that tells blocks of these names from other families', "" for none.
    """

    blocks: str
    folds: tuple[Fold, ...]
    has: str = ""
    lacks: str = ""


def fold(*uses: str | Use, by: Producer | tuple[Producer, ...], unless: str = "") -> Fold:
    """Make a fold of layers by name and one producer or several."""
    layers = tuple(Use(u) if isinstance(u, str) else u for u in uses)
    return Fold(layers, by if isinstance(by, tuple) else (by,), unless)
