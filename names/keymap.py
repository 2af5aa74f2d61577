"""A checkpoint's names to a model's and back, where they differ, by a table of `rows.Row`."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from .families import CLASSES
from .rows import Row, swaps

Rule = tuple
"""A `Row`, or the tuple it is made of: ``(source, target)``, ``(source, (target, ...))`` or
``(source, target, "swap")``.

Names are whole tensor names or whole layer names (then every tensor of the layer follows), with
``{i}`` for a number. Several targets take the rows of the source in order; an empty tuple drops the
source; "swap" exchanges its two halves of rows."""

_NUMBER = re.compile(r"\d+")


class Shaped(Protocol):
    """Anything with a shape: a tensor, or what a header says of one."""

    @property
    def shape(self) -> Sequence[int]:
        """Return the extent of each axis."""


@dataclass(frozen=True)
class Mapped:
    """Where one tensor of a checkpoint goes: target names in row order, and how, as `Row.how` says."""

    targets: tuple[str, ...]
    how: str = ""

    def swapped(self, tensors: Mapping[str, Shaped]) -> bool:
        """Tell whether the halves of its rows are exchanged. tensors: the model's, by name.

        A bias is like its weight: what the shape of a layer decides is decided by the weight's.
        """
        if len(self.targets) != 1 or not swaps(self.how, 2, 1):
            return False
        layer = self.targets[0].rpartition(".")[0]
        weight = f"{layer}.weight"
        shape = tensors[weight if weight in tensors else self.targets[0]].shape
        return swaps(self.how, shape[0], shape[-1])


class KeyMap:
    """Renames, splits and swaps by a table of `Rule`; a name that no rule matches stays as it is."""

    def __init__(self, rules: Iterable[Rule]):
        self._rows = [Row(*rule) for rule in rules]
        self._ours: dict[str, int] = {}
        self._theirs: dict[str, tuple[int, int]] = {}
        for number, row in enumerate(self._rows):
            self._ours.setdefault(row.ours, number)
            for part, target in enumerate(row.targets):
                self._theirs.setdefault(target, (number, part))

    def __call__(self, name: str) -> Mapped:
        """Return where checkpoint tensor `name` goes."""
        found = [(self._ours[text], i, leaf) for text, i, leaf in _readings(name) if text in self._ours]
        if not found:
            return Mapped((name,))
        number, i, leaf = min(found)  # the first rule that fits
        row = self._rows[number]
        return Mapped(tuple(t.replace("{i}", i) + leaf for t in row.targets), row.how)

    def inverse(self, names: Iterable[str]) -> dict[str, Mapped]:
        """Return {checkpoint name: Mapped(model names in row order)} for the model's `names`."""
        found: dict[str, dict[int, str]] = {}
        hows: dict[str, str] = {}
        for name in names:
            source, part, how = self._source(name)
            found.setdefault(source, {})[part] = name
            hows[source] = how
        return {s: Mapped(tuple(parts[p] for p in sorted(parts)), hows[s]) for s, parts in found.items()}

    def lists(self, name: str) -> bool:
        """Tell whether a rule says where the model's tensor `name` comes from, be it of the same name."""
        return any(text in self._theirs for text, _, _ in _readings(name))

    def _source(self, name: str) -> tuple[str, int, str]:
        found = [(*self._theirs[text], i, leaf) for text, i, leaf in _readings(name) if text in self._theirs]
        if not found:
            return name, 0, ""
        number, part, i, leaf = min(found)
        row = self._rows[number]
        return row.ours.replace("{i}", i) + leaf, part, row.how


def _readings(name: str) -> Iterator[tuple[str, str, str]]:
    """Yield what a rule may call a tensor: its name or its layer's, the number read as {i}, what is left."""
    layer, _, leaf = name.rpartition(".")
    for text, left in ((name, ""), (layer, "." + leaf)):
        yield text, "", left
        for number in _NUMBER.finditer(text):
            yield f"{text[: number.start()]}{{i}}{text[number.end() :]}", number.group(), left


IDENTITY = KeyMap(())


def map_for(model: object) -> KeyMap:
    """Return the map of `model`'s class (or of a base class) by the table in `CLASSES`, else IDENTITY."""
    for cls in type(model).__mro__:
        if cls.__name__ in CLASSES:
            return KeyMap(CLASSES[cls.__name__])
    return IDENTITY
