"""From a preset's folds to their places in a checkpoint, by names and shapes. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from ...folding.inputs import Columns, FoldedInput, Rows, by_tensor
from ..presets import Match
from ..presets.folds import BlockFolds, Fold, Modulation, Norm, Producer, SharedModulation, Up, Use, Values

Shapes = Mapping[str, tuple[int, ...]]


def find_inputs(shapes: Shapes, matches: Iterable[Match], kinds: Collection[str]) -> Iterator[FoldedInput]:
    """Yield the inputs that the presets of a checkpoint's models can fold, block by block.

    kinds: "mean", to take means off where that is exact, "smooth" to scale channels, or both. A fold some of
    whose tensors are not there, or have other shapes than it foresees, is left out.
    """
    for match in matches:
        inside = {n[len(match.prefix) :]: s for n, s in shapes.items() if n.startswith(match.prefix)}
        groups = match.preset.folds
        found = [*_in_blocks(inside, groups, match.named), *shared_inputs(inside, groups)]
        for one in found if _apart(found) else ():
            wanted = replace(
                one, smooth=one.smooth and "smooth" in kinds, mean=one.mean and "mean" in kinds
            ).moved("", match.prefix)
            if wanted.smooth or wanted.mean:
                yield wanted


def _apart(inputs: Sequence[FoldedInput]) -> bool:
    """Tell whether no two of the inputs change the same part of a tensor, as in a file with layers twice."""
    try:
        by_tensor(inputs)
    except ValueError:
        return False
    return True


def _in_blocks(shapes: Shapes, groups: Iterable[BlockFolds], named: bool) -> Iterator[FoldedInput]:
    for group in groups:
        for block in blocks_of(shapes, group):
            for one in group.folds:
                if (found := Place(shapes, f"{block}.", named).input(one)) is not None:
                    yield found


def blocks_of(shapes: Shapes, group: BlockFolds) -> Iterator[str]:
    """Yield the names of a group's blocks, in order of the tensors."""
    pattern = re.compile(rf"({group.blocks})\.")
    for block in dict.fromkeys(m[1] for n in shapes if (m := pattern.match(n))):
        has = not group.has or f"{block}.{group.has}" in shapes
        if has and not (group.lacks and f"{block}.{group.lacks}" in shapes):
            yield block


class Unfit(Exception):
    """A fold does not fit the tensors that are there."""


@dataclass(frozen=True)
class Place:
    """A block of a checkpoint.

    before: what stands before the names in it. named: the user said what it is, and heads that its table
    gives a size may have another one: no tensor of the file tells.
    """

    shapes: Shapes
    before: str
    named: bool = False

    def input(self, fold: Fold) -> FoldedInput | None:
        """Return a fold's places in the block, as much as can be; None where it does not fit."""
        if fold.unless and self.before + fold.unless in self.shapes:
            return None
        try:
            columns, width = self.columns(fold)
            repeats, head = self._heads(fold.producers, width)
            rows = tuple(r for p in fold.producers for r in self._rows(p, width, width // repeats))
        except Unfit:
            return None
        shifts = all(c.bias for c in columns) and all(self._shifts(p) for p in fold.producers)
        smooth = not any(isinstance(p, SharedModulation) for p in fold.producers)
        return FoldedInput(width, columns, rows, smooth, shifts, repeats, head)

    def columns(self, fold: Fold) -> tuple[tuple[Columns, ...], int]:
        """Return the columns that read a fold's input, and its width. Raises Unfit."""
        spans = [self._columns(u) for u in fold.uses if not u.optional or self._has(u.layer)]
        widths = {width for _, width in spans}
        if len(widths) != 1:
            raise Unfit
        return tuple(c for c, _ in spans), widths.pop()

    def _has(self, layer: str) -> bool:
        return f"{self.before}{layer}.weight" in self.shapes

    def _shape(self, name: str, rank: int) -> tuple[int, ...]:
        shape = self.shapes.get(self.before + name, ())
        if len(shape) != rank:
            raise Unfit
        return shape

    def _bias(self, layer: str) -> bool:
        return f"{self.before}{layer}.bias" in self.shapes

    def _columns(self, use: Use) -> tuple[Columns, int]:
        n, k = self._shape(f"{use.layer}.weight", 2)
        start, width = {"all": (0, k), "first": (0, n), "rest": (n, k - n)}[use.columns]
        if width <= 0 or start + width > k:
            raise Unfit
        return Columns(self.before + use.layer, start, self._bias(use.layer)), width

    def _heads(self, producers: Iterable[Producer], width: int) -> tuple[int, int]:
        """Return how many heads of the input share the rows that produce them, and the channels of a head."""
        found = {self._repeats(p, width) for p in producers}
        if len(found) != 1:
            raise Unfit
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
        elif self.named:
            raise Unfit
        if not head or count % head or width % count:
            raise Unfit
        return width // count, head

    def _span(self, producer: Values | Up) -> tuple[int, int]:
        """Return the first of the rows that are meant, and their number."""
        n, k = self._shape(f"{producer.layer}.weight", 2)
        segments = producer.rows.segments(n, k)
        start, _, count = segments[0] if segments else (0, 0, n)
        if count <= 0 or start + count > n:
            raise Unfit
        return start, count

    def _rows(self, producer: Producer, width: int, factors: int) -> Iterator[Rows]:
        if isinstance(producer, Norm):
            yield from self._norm(producer, width)
        elif isinstance(producer, Modulation):
            yield from self._modulation(producer, width)
        elif isinstance(producer, SharedModulation):
            yield Rows(self._table(producer, width), producer.shift * width, shifts=True, flat=True)
        else:
            start, count = self._span(producer)
            if count != factors:
                raise Unfit
            layer = self.before + producer.layer
            yield Rows(f"{layer}.weight", start)
            if self._bias(producer.layer):
                yield Rows(f"{layer}.bias", start, shifts=isinstance(producer, Values) and producer.shifts)

    def _norm(self, norm: Norm, width: int) -> Iterator[Rows]:
        if self._shape(f"{norm.name}.weight", 1) != (width,):
            raise Unfit
        yield Rows(f"{self.before}{norm.name}.weight", 0, norm.offset)
        if self._bias(norm.name):
            yield Rows(f"{self.before}{norm.name}.bias", 0, shifts=True)

    def _modulation(self, made: Modulation, width: int) -> Iterator[Rows]:
        rows, _ = self._shape(f"{made.layer}.weight", 2)
        places = [(made.scale, 1.0, False)]
        if made.shift is not None:
            places.append((made.shift, 0.0, True))
        last = max(place for place, _, _ in places)
        if self._shape(f"{made.layer}.bias", 1) != (rows,) or (last + 1) * width > rows:
            raise Unfit
        layer = self.before + made.layer
        for place, offset, shifts in places:
            yield Rows(f"{layer}.weight", place * width)
            yield Rows(f"{layer}.bias", place * width, offset, shifts)

    def _table(self, made: SharedModulation, width: int) -> str:
        name = self.before + made.table
        if prod(self.shapes.get(name, (0,))) < (max(made.scale, made.shift) + 1) * width:
            raise Unfit
        return name

    def _shifts(self, producer: Producer) -> bool:
        """Tell whether a producer can give its input less a mean."""
        if isinstance(producer, Modulation | SharedModulation):
            return producer.shift is not None
        if isinstance(producer, Up):
            return False
        if isinstance(producer, Values) and producer.gate and self.before + producer.gate in self.shapes:
            return False
        if isinstance(producer, Values) and not producer.shifts:
            return True
        return self._bias(producer.name if isinstance(producer, Norm) else producer.layer)


def shared_inputs(shapes: Shapes, groups: Iterable[BlockFolds]) -> Iterator[FoldedInput]:
    """Yield an input of all blocks for each place of a modulation that they share: one set of factors.

    None where a block with such a table would be left out: the modulation is for it too.
    """
    found: dict[SharedModulation, list[tuple[Place, Fold]]] = {}
    for group in groups:
        for block in blocks_of(shapes, group):
            for one in group.folds:
                if isinstance(one.producers[0], SharedModulation):
                    found.setdefault(one.producers[0], []).append((Place(shapes, f"{block}."), one))
    for made, places in found.items():
        try:
            columns = [place.columns(one) for place, one in places]
            yield _shared(shapes, made, [place for place, _ in places], columns)
        except Unfit:
            continue


def _shared(
    shapes: Shapes,
    made: SharedModulation,
    places: Sequence[Place],
    columns: Sequence[tuple[tuple[Columns, ...], int]],
) -> FoldedInput:
    widths = {width for _, width in columns}
    if len(widths) != 1:
        raise Unfit
    width = widths.pop()
    tables = [place.before + made.table for place in places]
    alike = {n for n, s in shapes.items() if n.endswith(f".{made.table}") and s == shapes.get(tables[0])}
    rows = shapes.get(f"{made.layer}.bias", ())
    if alike != set(tables) or shapes.get(f"{made.layer}.weight", ())[:1] != rows or len(rows) != 1:
        raise Unfit
    if rows[0] < (max(made.scale, made.shift) + 1) * width:
        raise Unfit
    ends = [Rows(f"{made.layer}.{leaf}", p * width) for p in (made.scale, made.shift) for leaf in _LEAVES]
    for table in tables:
        ends += [
            Rows(table, made.scale * width, 1.0, flat=True),
            Rows(table, made.shift * width, flat=True),
        ]
    return FoldedInput(width, tuple(c for part, _ in columns for c in part), tuple(ends), True, False)


_LEAVES = ("weight", "bias")
