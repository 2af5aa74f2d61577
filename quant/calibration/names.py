"""Layer names across programs: the same layer under the usual prefixes."""

from collections.abc import Iterable
from dataclasses import dataclass

from ...names.aliases import Aliases
from ...names.prefixes import RUNNING, strip


class NothingMatched(ValueError):
    """No record of the calibration belongs to any layer."""


@dataclass(frozen=True)
class MatchReport:
    """What `match` found: layers with a record, layers without, and records that no layer uses."""

    matched: tuple[str, ...]
    unmatched: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """Return one line for a log: how many layers and records found each other."""
        line = f"calibration: {len(self.matched)} layers matched"
        if self.unmatched:
            line += f", {len(self.unmatched)} without a record ({_some(self.unmatched)})"
        if self.unused:
            line += f", {len(self.unused)} records unused ({_some(self.unused)})"
        return line


def _some(names: tuple[str, ...], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def bare(name: str) -> str:
    """Return `name` without ".weight", wrappers and the prefixes of running models."""
    return strip(name.removesuffix(".weight").replace("._orig_mod.", "."), RUNNING)


def owners(layers: Iterable[str], records: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Find which records belong to each layer: the one of its name, else the one of its `bare` name.

    A bare name that two records share is ambiguous and matches neither. A layer without such a record has
    those recorded under diffusers' names where its own is ComfyUI's, or the other way round: several where
    ComfyUI fuses layers. Layers without any are left out.
    """
    records = list(records)
    known = set(records)
    by_bare: dict[str, str | None] = {}
    for record in records:
        key = bare(record)
        by_bare[key] = None if key in by_bare else record
    aliases = Aliases(by_bare)
    found: dict[str, tuple[str, ...]] = {}
    for layer in layers:
        own = layer.removesuffix(".weight")
        named = next((r for r in (layer, own) if r in known), None) or by_bare.get(bare(layer))
        others = (r for name in aliases.of(bare(layer)) if (r := by_bare[name])) if not named else ()
        if every := (named,) if named else tuple(others):
            found[layer] = every
    return found


def match(layers: Iterable[str], records: Iterable[str]) -> tuple[dict[str, str], MatchReport]:
    """Find the record of each layer: of its `owners` the first, as layers that ComfyUI fuses have one input.

    NothingMatched when no layer found a record, with names of both sides.
    """
    layers, records = list(layers), list(records)
    every = owners(layers, records)
    found = {layer: names[0] for layer, names in every.items()}
    used = {name for names in every.values() for name in names}
    if not found:
        raise NothingMatched(
            f"calibration: none of {len(records)} records ({_some(tuple(records))}) matches any of "
            f"{len(layers)} layers ({_some(tuple(layers))})"
        )
    return found, MatchReport(
        tuple(found),
        tuple(name for name in layers if name not in found),
        tuple(r for r in records if r not in used),
    )
