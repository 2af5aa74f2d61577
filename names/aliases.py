"""A layer's name on the other side: ComfyUI's of a diffusers layer, diffusers' of a ComfyUI layer.

Layers that ComfyUI fuses have one input, so what is recorded of it under either name is of use to both.
"""

from collections.abc import Collection
from functools import cache

from .families import FAMILIES
from .keymap import KeyMap
from .unet import UNET

_LEAF = ".weight"


@cache
def _tables() -> tuple[KeyMap, ...]:
    return tuple(KeyMap(rows) for rows in (*FAMILIES.values(), UNET))


class Aliases:
    """The other names of layers, among those that are `known`."""

    def __init__(self, known: Collection[str]):
        self._known = set(known)

    def of(self, layer: str) -> tuple[str, ...]:
        """Return the known names of `layer` on the other side, in order of the rows; empty if none is known.

        Empty as well where tables of two models lead to different ones.
        """
        found = {names for table in _tables() if (names := self._by(table, layer))}
        return found.pop() if len(found) == 1 else ()

    def _by(self, table: KeyMap, layer: str) -> tuple[str, ...]:
        name = layer + _LEAF
        theirs = table(name).targets
        ours = tuple(table.inverse([name]))
        names = (n.removesuffix(_LEAF) for n in (*theirs, *ours) if n != name)
        return tuple(n for n in names if n in self._known)
