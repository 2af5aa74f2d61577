"""From the other tool's options to this one's: what `peer` says, applied to what was given."""

from collections.abc import Iterable, Mapping
from typing import Any

from ...formats.choose import options, writable
from .peer import PEER_OPTIONS, PeerOption
from .settings import KEEP_SET_NAMES, keywords

Given = Mapping[str, tuple[str, Any]]
"""Options of `PEER_OPTIONS` by name: the spelling that was used, and the value (True for a flag)."""


def translated(given: Given, known: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the fields that peer options stand for, beside `known` ones, and lines for the user.

    known: the fields that were given under their own names. ValueError for an option that is refused, a
    format that is not written, and two options that ask for different things.
    """
    found, asked, lines = dict(known), dict.fromkeys(known, ""), []
    used = [(o, *given[o.name]) for o in PEER_OPTIONS if o.name in given]
    for option, flag, value in used:
        if option.instead or option.edits:
            instead = option.instead or "that is the command ctq edit FILE"
            raise ValueError(f"{flag} is not an option here: {instead}")
        for name, what in option.fields(value).items():
            if name == "format" and what not in writable():
                raise ValueError(f"{flag}: {what} is not written; --format takes {' or '.join(options())}")
            if name in found and str(found[name]) not in (str(what), "True"):
                other = asked[name] or f"--{name.replace('_', '-')} {found[name]}"
                raise ValueError(f"{flag} and {other} contradict each other; leave one out")
            found[name], asked[name] = what, flag
        if option.says and option.by_value.get(str(value)) != {}:
            lines.append(option.says)
    return found, [*lines, *_knobs((o, flag) for o, flag, _ in used)]


def by_keyword(options: Mapping[str, Any]) -> tuple[dict[str, tuple[str, Any]], dict[str, Any]]:
    """Split the other tool's Python keywords into what `translated` takes: its options, and fields of ours.

    None, and False for one of its flags, are what it has as defaults. A name that neither tool has stays
    among the fields, where it is refused.
    """
    peers = {o.name: o for o in PEER_OPTIONS}
    given: dict[str, tuple[str, Any]] = {}
    known: dict[str, Any] = {}
    for name, value in options.items():
        if name == "verbose" or value is None:  # nothing is printed, at any level
            continue
        if name in KEEP_SET_NAMES:
            known["keep_sets"] = (*known.get("keep_sets", ()), *((name,) if value else ()))
        elif name in keywords() or name not in peers:
            known[name] = value
        elif value is not False:
            given[name] = (name, value)
    return given, known


def _knobs(used: Iterable[tuple[PeerOption, str]]) -> list[str]:
    flags = [flag for option, flag in used if option.idle and not option.says]
    if not flags:
        return []
    verbs = (
        "tunes an optimizer that is not here, and changes"
        if len(flags) == 1
        else ("tune an optimizer that is not here, and change")
    )
    return [f"{', '.join(flags)}: {verbs} nothing"]
