"""The factors of one input, and the arithmetic with them.

For an input x with mean mu and factors t, what produces x gives (x - mu) / t and what reads it has W diag(t)
and b + W mu. Factors are powers of the fourth root of two, by a table: the same numbers on every machine, so
that a fold can be done again to the bit. Steps that fine cost 0.04 dB W8A8, powers of two 0.6 dB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from .inputs import Columns, FoldedInput, Rows, TensorFolds, by_tensor

STEPS = 4
"""Factors in an octave."""

MOST = 12 * STEPS
"""Largest exponent of a factor, up or down."""

_ROOTS = torch.tensor([1.0, 2**0.25, 2**0.5, 2**0.75], dtype=torch.float32)

_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Factors:
    """The factors of an input, one for each of the rows that produce it.

    exponents: int8 [C], t = 2^(exponent / STEPS). mean: float32 [C], None where none is taken off.
    """

    exponents: torch.Tensor
    mean: torch.Tensor | None

    @property
    def scale(self) -> torch.Tensor:
        """Return t, float32 [C]."""
        steps = self.exponents.int()
        octaves = steps.div(STEPS, rounding_mode="floor")
        return torch.ldexp(_ROOTS[steps - STEPS * octaves], octaves)


def widened(values: torch.Tensor, one: FoldedInput) -> torch.Tensor:
    """Repeat values of the rows that produce an input, [C], over the heads that share them: [width]."""
    if one.repeats == 1:
        return values
    return values.view(-1, 1, one.head).expand(-1, one.repeats, -1).reshape(one.width)


def narrowed(values: torch.Tensor, one: FoldedInput) -> torch.Tensor:
    """Average values of an input's channels, [width], over the heads that come from the same rows: [C]."""
    if one.repeats == 1:
        return values
    return values.view(-1, one.repeats, one.head).mean(1).reshape(one.factors)


def product(weight: torch.Tensor, start: int, mean: torch.Tensor) -> torch.Tensor:
    """Return W mu over the columns from `start` on, float64 [N], through a few rows at a time."""
    mean = mean.double()
    columns = weight[:, start : start + len(mean)]
    step = max(1, _ELEMENTS // len(mean))
    return torch.cat([columns[r : r + step].double() @ mean for r in range(0, len(columns), step)])


@dataclass(frozen=True)
class Folds:
    """All folds of a checkpoint with their factors.

    gain: returns W mu of an input's columns in a layer, float64 [N], by the input's number and the layer.
    """

    inputs: Sequence[FoldedInput]
    factors: Sequence[Factors]
    gain: Callable[[int, str], torch.Tensor]

    @cached_property
    def tensors(self) -> dict[str, TensorFolds]:
        """What is done to each tensor."""
        return by_tensor(self.inputs)

    def apply(self, name: str, values: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Return a tensor's values with its folds in them, float32 or wider; float32 is changed in place.

        first: the number of the first row of `values`, where they are some of a weight's rows.
        """
        folds = self.tensors.get(name)
        if folds is None:
            return values
        folded = values.float() if values.dim() > 1 else values.double()
        folded = self.columns(name, folded)
        for number, c in folds.added:
            folded = folded + self.gain(number, c.layer)
        return self.divided(name, folded, first)

    def columns(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """Multiply the columns of a weight, or of what a change of it reads, [.., K], in place."""
        for number, c in self.tensors[name].columns:
            one = self.inputs[number]
            values[:, c.start : c.start + one.width] *= widened(self.factors[number].scale, one)
        return values

    def divided(self, name: str, values: torch.Tensor, first: int = 0, shift: bool = True) -> torch.Tensor:
        """Divide the rows of a tensor that produce inputs, in place; first: as in `apply`.

        shift: False for a change of the tensor, which has no part in means and offsets.
        """
        folds = self.tensors.get(name, TensorFolds())
        for number, r in folds.rows:
            rows = r if shift else replace(r, offset=0.0, shifts=False)
            _divide_(values.view(-1) if r.flat else values, rows, self.factors[number], first)
        return values

    def means(self, layer: str) -> list[tuple[Columns, torch.Tensor]]:
        """Return the means that are taken off a layer's inputs, float32, with their columns."""
        folds = self.tensors.get(f"{layer}.bias", TensorFolds())
        found = ((c, self.inputs[i], self.factors[i].mean) for i, c in folds.added)
        return [(c, widened(mean, one)) for c, one, mean in found if mean is not None]

    def mean_output(self, layer: str) -> torch.Tensor | None:
        """Return what the means of a layer's inputs give, which its bias takes, float64 [N]; or None."""
        folds = self.tensors.get(f"{layer}.bias")
        if folds is None or not folds.added:
            return None
        return sum(self.gain(number, c.layer) for number, c in folds.added)  # type: ignore[return-value]

    def quotients(self, name: str, rows: int, first: int = 0) -> torch.Tensor | None:
        """Return 1 / s of a tensor's rows, float32 [rows]; None where none is divided. first: see `apply`."""
        folds = self.tensors.get(name)
        if folds is None or not folds.rows:
            return None
        return self.divided(name, torch.ones(rows), first, shift=False)

    def row_factors(self, layer: str, rows: int) -> torch.Tensor | None:
        """Return s of a layer's outputs, float32 [N]: what its rows are divided by; None for nothing."""
        quotients = self.quotients(f"{layer}.weight", rows)
        return None if quotients is None else 1 / quotients


def _divide_(values: torch.Tensor, rows: Rows, made: Factors, first: int) -> None:
    """Make v of the rows that a fold has (v + offset - mu) / t - offset, of rows from `first` on."""
    start, stop = max(rows.start, first), min(rows.start + len(made.exponents), first + len(values))
    if start >= stop:
        return
    part, own = values[start - first : stop - first], slice(start - rows.start, stop - rows.start)
    if rows.offset:
        part += rows.offset
    if rows.shifts and made.mean is not None:
        part -= made.mean[own]
    part /= made.scale[own].view(-1, *[1] * (values.dim() - 1))
    if rows.offset:
        part -= rows.offset
