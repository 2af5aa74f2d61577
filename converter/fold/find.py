"""From a preset's folds to their places in a checkpoint, by names and shapes. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ..presets import Match
from ..presets.folds import Fold, Modulation, Norm, Producer, Up, Use, Values
from .inputs import Columns, FoldedInput, Rows

Shapes = Mapping[str, tuple[int, ...]]


def find_inputs(shapes: Shapes, matches: Iterable[Match], mean: bool) -> Iterator[FoldedInput]:
    """Yield the inputs that the presets of a checkpoint's models can fold, block by block.

    mean: whether means are to be taken off where that is exact. A fold some of whose tensors are not there,
    or have other shapes than it foresees, is left out.
    """
    for match in matches:
        names = [n[len(match.prefix) :] for n in shapes if n.startswith(match.prefix)]
        for group in match.preset.folds:
            pattern = re.compile(rf"({group.blocks})\.")
            blocks = dict.fromkeys(m[1] for n in names if (m := pattern.match(n)))
            for block in blocks:
                for one in group.folds:
                    found = _Place(shapes, f"{match.prefix}{block}.").input(one, mean)
                    if found is not None:
                        yield found


class _Unfit(Exception):
    """A fold does not fit the tensors that are there."""


@dataclass(frozen=True)
class _Place:
    """A block of a checkpoint. before: what stands before the names in it."""

    shapes: Shapes
    before: str

    def input(self, fold: Fold, mean: bool) -> FoldedInput | None:
        """Return a fold's places in the block; None where it does not fit."""
        try:
            uses = [u for u in fold.uses if not u.optional or self._has(u.layer)]
            spans = [self._columns(u) for u in uses]
            widths = {width for _, width in spans}
            if len(widths) != 1:
                return None
            width = widths.pop()
            repeats, head = self._heads(fold.producers, width)
            columns = tuple(c for c, _ in spans)
            rows = tuple(r for p in fold.producers for r in self._rows(p, width, width // repeats))
        except _Unfit:
            return None
        shifts = all(c.bias for c in columns) and all(self._shifts(p) for p in fold.producers)
        return FoldedInput(width, columns, rows, mean and shifts, repeats, head)

    def _has(self, layer: str) -> bool:
        return f"{self.before}{layer}.weight" in self.shapes

    def _shape(self, name: str, rank: int) -> tuple[int, ...]:
        shape = self.shapes.get(self.before + name, ())
        if len(shape) != rank:
            raise _Unfit
        return shape

    def _bias(self, layer: str) -> bool:
        return f"{self.before}{layer}.bias" in self.shapes

    def _columns(self, use: Use) -> tuple[Columns, int]:
        n, k = self._shape(f"{use.layer}.weight", 2)
        start, width = {"all": (0, k), "first": (0, n), "rest": (n, k - n)}[use.columns]
        if width <= 0 or start + width > k:
            raise _Unfit
        return Columns(self.before + use.layer, start, self._bias(use.layer)), width

    def _heads(self, producers: Iterable[Producer], width: int) -> tuple[int, int]:
        """Return how many heads of the input share the rows that produce them, and the channels of a head."""
        found = {self._repeats(p, width) for p in producers}
        if len(found) != 1:
            raise _Unfit
        return found.pop()

    def _repeats(self, producer: Producer, width: int) -> tuple[int, int]:
        if not isinstance(producer, Values):
            return 1, 0
        _, count = self._span(producer)
        if count == width:
            return 1, 0
        head = producer.head
        if isinstance(head, str):
            (head,) = self._shape(head, 1)
        if not head or count % head or width % count:
            raise _Unfit
        return width // count, head

    def _span(self, producer: Values | Up) -> tuple[int, int]:
        """Return the first of the rows that are meant, and their number."""
        n, k = self._shape(f"{producer.layer}.weight", 2)
        segments = producer.rows.segments(n, k)
        start, _, count = segments[0] if segments else (0, 0, n)
        if count <= 0 or start + count > n:
            raise _Unfit
        return start, count

    def _rows(self, producer: Producer, width: int, factors: int) -> Iterator[Rows]:
        if isinstance(producer, Norm):
            yield from self._norm(producer, width)
        elif isinstance(producer, Modulation):
            yield from self._modulation(producer, width)
        else:
            start, count = self._span(producer)
            if count != factors:
                raise _Unfit
            layer = self.before + producer.layer
            yield Rows(f"{layer}.weight", start)
            if self._bias(producer.layer):
                yield Rows(f"{layer}.bias", start, shifts=isinstance(producer, Values))

    def _norm(self, norm: Norm, width: int) -> Iterator[Rows]:
        if self._shape(f"{norm.name}.weight", 1) != (width,):
            raise _Unfit
        yield Rows(f"{self.before}{norm.name}.weight", 0, norm.offset)
        if self._bias(norm.name):
            yield Rows(f"{self.before}{norm.name}.bias", 0, shifts=True)

    def _modulation(self, made: Modulation, width: int) -> Iterator[Rows]:
        rows, _ = self._shape(f"{made.layer}.weight", 2)
        places = (made.scale, made.shift)
        if self._shape(f"{made.layer}.bias", 1) != (rows,) or (max(places) + 1) * width > rows:
            raise _Unfit
        layer = self.before + made.layer
        for place, offset, shifts in ((made.scale, 1.0, False), (made.shift, 0.0, True)):
            yield Rows(f"{layer}.weight", place * width)
            yield Rows(f"{layer}.bias", place * width, offset, shifts)

    def _shifts(self, producer: Producer) -> bool:
        """Tell whether a producer can give its input less a mean."""
        if isinstance(producer, Modulation):
            return True
        if isinstance(producer, Up):
            return False
        return self._bias(producer.name if isinstance(producer, Norm) else producer.layer)
