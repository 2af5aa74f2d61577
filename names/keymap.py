"""A checkpoint's names to a model's and back, where they differ, by a table of `rows.Row`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .families import CLASSES
from .rows import Row

Rule = tuple
"""A `Row`, or the tuple it is made of: ``(source, target)``, ``(source, (target, ...))`` or
``(source, target, "swap")``.

Names are whole tensor names or whole layer names (then every tensor of the layer follows), with
``{i}`` for a number. Several targets take the rows of the source in order; an empty tuple drops the
source; "swap" exchanges its two halves of rows."""

_NUMBER = r"(?P<i>\d+)"


def _compile(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{i\}", _NUMBER))


@dataclass(frozen=True)
class Mapped:
    """Where one tensor of a checkpoint goes: target names in row order, halves swapped or not."""

    targets: tuple[str, ...]
    swap: bool = False


class KeyMap:
    """Renames, splits and swaps by a table of `Rule`; a name that no rule matches stays as it is."""

    def __init__(self, rules: Iterable[Rule]):
        rows = [Row(*rule) for rule in rules]
        self._rules = [(row.ours, _compile(row.ours), row.targets, row.how == "swap") for row in rows]

    def __call__(self, name: str) -> Mapped:
        """Return where checkpoint tensor `name` goes."""
        layer, _, leaf = name.rpartition(".")
        for _, pattern, targets, swap in self._rules:
            for text, suffix in ((name, ""), (layer, "." + leaf)):
                found = pattern.fullmatch(text)
                if found:
                    i = found.groupdict().get("i", "")
                    return Mapped(tuple(t.replace("{i}", i) + suffix for t in targets), swap)
        return Mapped((name,))

    def inverse(self, names: Iterable[str]) -> dict[str, Mapped]:
        """Return {checkpoint name: Mapped(model names in row order)} for the model's `names`."""
        found: dict[str, dict[int, str]] = {}
        swapped: dict[str, bool] = {}
        for name in names:
            source, part, swap = self._source(name)
            found.setdefault(source, {})[part] = name
            swapped[source] = swap
        return {s: Mapped(tuple(parts[p] for p in sorted(parts)), swapped[s]) for s, parts in found.items()}

    def _source(self, name: str) -> tuple[str, int, bool]:
        layer, _, leaf = name.rpartition(".")
        for source, _, targets, swap in self._rules:
            for part, target in enumerate(targets):
                pattern = _compile(target)
                for text, suffix in ((name, ""), (layer, "." + leaf)):
                    match = pattern.fullmatch(text)
                    if match:
                        return source.replace("{i}", match.groupdict().get("i", "")) + suffix, part, swap
        return name, 0, False


IDENTITY = KeyMap(())


def map_for(model: object) -> KeyMap:
    """Return the map of `model`'s class (or of a base class) by the table in `CLASSES`, else IDENTITY."""
    for cls in type(model).__mro__:
        if cls.__name__ in CLASSES:
            return KeyMap(CLASSES[cls.__name__])
    return IDENTITY
