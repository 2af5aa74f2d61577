"""Formats by the words that people type: ``--format`` and ``--scaling_mode``."""

from .base import FORMATS, Format

DEFAULT = "int8"

_ALIASES = {
    "axis": "row",
    "channel": "row",
    "rowwise": "row",
    "tensorwise": "tensor",
    "blockwise": "block",
    "block2d": "block",
}


def written() -> list[type[Format]]:
    """Return the formats that can be written, those first that stock ComfyUI loads."""
    return sorted((f for f in FORMATS.values() if f.option), key=lambda f: not f.stock_since)


def default_format() -> Format:
    """Return what a layer is stored as when nothing is asked, not rotated."""
    return chosen(DEFAULT, None)()


def options() -> list[str]:
    """Return the values of ``--format``."""
    return list(dict.fromkeys(name for f in written() for name in names(f)))


def names(form: type[Format]) -> tuple[str, ...]:
    """Return the values of ``--format`` that mean this format."""
    return form.options or ((form.option,) if form.option else ())


def mixable(name: str) -> list[str]:
    """Return the options that stock ComfyUI loads and that take the same activations as format `name`."""
    own = chosen(name, None).activations
    return list(
        dict.fromkeys(n for f in written() if f.stock_since and f.activations == own for n in names(f))
    )


def writable() -> list[str]:
    """Return every name that a format to write can be given by: options, then names on disk."""
    return list(dict.fromkeys([*options(), *(f.name for f in written())]))


def granularities() -> list[str]:
    """Return the values of ``--scaling_mode``."""
    return list(dict.fromkeys(g for f in written() for g in f.granularities))


def granularity_name(text: str) -> str:
    """Return the granularity that a person named, also as other tools call it (axis, tensorwise, ...).

    ValueError, listing the granularities there are, for another word.
    """
    name = _ALIASES.get(text, text)
    known = granularities()
    if name not in known:
        raise ValueError(f"scaling mode must be {', '.join(known[:-1])} or {known[-1]}, not {text!r}")
    return name


def chosen(name: str, granularity: str | None) -> type[Format]:
    """Return the format of an option (or name on disk) with a granularity, None or "" for its own.

    ValueError for an unknown format, or where that format has no such granularity; it names the one to use.
    """
    if name in FORMATS:
        found = FORMATS[name]
        if granularity and granularity not in found.granularities:
            raise ValueError(_no_granularity(name, found.granularities, granularity))
        return found
    family = [f for f in written() if name in names(f)]
    if not family:
        raise ValueError(f"there is no format {name!r}; known: {', '.join(writable())}")
    fitting = [f for f in family if not granularity or granularity in f.granularities]
    if not fitting:
        known = tuple(g for f in family for g in f.granularities)
        raise ValueError(_no_granularity(name, known, granularity))
    return fitting[0]


def _no_granularity(name: str, known: tuple[str, ...], given: str | None) -> str:
    if not known:
        return f"{name} has scales of its own kind; --scaling_mode does not apply to it"
    other = next((f.name for f in written() if given in f.granularities), "")
    remedy = f"; for {given} use {other}" if other else ""
    return f"{name} has scales by {' or '.join(known)}, not by {given}{remedy}"
