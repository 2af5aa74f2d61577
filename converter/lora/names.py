"""The checkpoint's layers, found by any name a LoRA file may use for them.

A LoRA names a layer as the checkpoint does, or with another prefix, or with underscores for dots (kohya),
or as diffusers does. All of these lead to one index made from the checkpoint's own names; a name that could
mean two layers is an error, never a guess.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from ...formats.errors import ConversionError
from ...names.families import FAMILIES
from ...names.prefixes import checkpoint_forms, is_flattened, lora_readings
from ...names.rows import ALL_ROWS, Part
from ...names.unet import UNET

_NUMBER = re.compile(r"(?<![^_])\d+(?![^_])")
_NOT_LAYERS = (".bias", ".weight_scale", ".scale_weight", ".input_scale", ".scale_input", ".comfy_quant")


@dataclass(frozen=True)
class Place:
    """A layer of the checkpoint under one of its names.

    layer: its own name, without ``.weight``. rows: which of its rows the name means.
    part: "model", "te", "te1", "te2", "te3", or "" where the checkpoint does not tell.
    """

    layer: str
    rows: Part = ALL_ROWS
    part: str = ""


def normal(name: str) -> str:
    """Return a name as kohya writes it: underscores for dots."""
    return name.replace(".", "_")


class LayerIndex:
    """Every layer of a checkpoint by every name. names: its tensors' names."""

    def __init__(self, names: Mapping[str, object]):
        self._exact: dict[str, set[Place]] = {}
        self._normal: dict[str, set[Place]] = {}
        self._aliased: dict[str, set[Place]] = {}
        for name in names:
            if name.endswith(_NOT_LAYERS):
                continue
            layer = name.removesuffix(".weight")
            forms = list(checkpoint_forms(layer))
            part = next((part for _, part in forms if part), "")
            place = Place(layer, part=part)
            for form, _ in forms:
                self._exact.setdefault(form, set()).add(place)
                self._normal.setdefault(normal(form), set()).add(place)
                for alias, rows in _aliases_of(normal(form)):
                    self._aliased.setdefault(alias, set()).add(Place(layer, rows, part))

    def find(self, module: str) -> Place | None:
        """Find the layer that a LoRA calls `module`; None when there is none.

        ConversionError when the name fits more than one layer.
        """
        for form, parts in lora_readings(module):
            plain = normal(form)
            # Below a kohya prefix an underscore may have been a dot: no spelling is the exact one.
            exact = None if is_flattened(module) and "." not in form else self._exact.get(form)
            for places in (exact, self._normal.get(plain), self._aliased.get(plain)):
                found = [p for p in places or () if not parts or not p.part or p.part in parts]
                if len(found) > 1:
                    layers = " and ".join(sorted(repr(p.layer) for p in found))
                    raise ConversionError(f"LoRA module {module!r} fits more than one layer: {layers}")
                if found:
                    return found[0]
        return None

    def nearest(self, module: str) -> str:
        """Return the layer whose name is most like `module`'s, "" for an empty checkpoint."""
        wanted = normal(list(lora_readings(module))[-1][0])
        near = difflib.get_close_matches(wanted, self._normal, 1, 0.0)
        return min(self._normal[near[0]], key=lambda p: p.layer).layer if near else ""


@cache
def alias_table() -> dict[str, list[tuple[str, Part]]]:
    """Return diffusers' names of the checkpoints' layers: normal name -> [(normal alias, its rows)].

    ``{i}`` in them is the number of the block, the same on both sides. The first releases of diffusers had no
    ``.0`` behind an attention's ``to_out``.
    """
    table: dict[str, list[tuple[str, Part]]] = {}
    for row in (row for rows in (*FAMILIES.values(), UNET) for row in rows):
        found = table.setdefault(normal(row.ours), [])
        for place, name in enumerate(row.targets):
            aliases = (name, name.removesuffix(".0")) if name.endswith(".to_out.0") else (name,)
            found += [(normal(alias), Part(row.how, place)) for alias in aliases]
    return table


def _aliases_of(layer: str) -> Iterator[tuple[str, Part]]:
    """Yield (alias, rows) of a layer by its normal name. One of its numbers may be the block's."""
    table = alias_table()
    yield from table.get(layer, ())
    for number in _NUMBER.finditer(layer):
        template = f"{layer[: number.start()]}{{i}}{layer[number.end() :]}"
        for alias, rows in table.get(template, ()):
            yield alias.replace("{i}", number.group()), rows
