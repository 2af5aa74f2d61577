"""Schemas of the JSON that files bring: what a value must be, said once, and refused with the path to it.

A schema is a function ``(value, where) -> value``: it returns the value, brought to its standard form, or
raises CheckpointError that begins with `where`. The ones below build on each other::

    ENTRY = record({"scale": number(), "names": listing(text())}, required=("names",))
    entry = ENTRY(read_json(path), path)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from math import isfinite
from typing import Any

from ..formats.config import shown
from ..formats.errors import CheckpointError

Schema = Callable[[Any, str], Any]


def _refuse(where: str, wanted: str, value: Any) -> CheckpointError:
    return CheckpointError(f"{where}: must be {wanted}, not {shown(value)}")


def _checked(check: Callable[[Any], Any] | None, value: Any, where: str) -> Any:
    """Apply a check that raises ValueError; the error then tells `where`."""
    if check is None:
        return value
    try:
        return check(value)
    except ValueError as e:
        raise CheckpointError(f"{where}: {e}") from e


def text(check: Callable[[str], Any] | None = None) -> Schema:
    """Make a schema of a text. check: returns its standard form, or raises ValueError."""

    def schema(value: Any, where: str) -> Any:
        if not isinstance(value, str):
            raise _refuse(where, "a text", value)
        return _checked(check, value, where)

    return schema


def truth() -> Schema:
    """Make a schema of true and false; 0 and 1 are neither."""

    def schema(value: Any, where: str) -> bool:
        if not isinstance(value, bool):
            raise _refuse(where, "true or false", value)
        return value

    return schema


def whole(check: Callable[[Any], Any] | None = None, *words: str) -> Schema:
    """Make a schema of a whole number, or one of `words`; 3.0 and true are none."""

    def schema(value: Any, where: str) -> Any:
        is_word = isinstance(value, str) and value in words
        if not is_word and (isinstance(value, bool) or not isinstance(value, int)):
            raise _refuse(where, f"a whole number{''.join(f' or {w}' for w in words)}", value)
        return _checked(check, value, where)

    return schema


def number(above: float | None = None, least: float | None = None) -> Schema:
    """Make a schema of a finite number, as a float: greater than `above`, at least `least`."""

    def schema(value: Any, where: str) -> float:
        wanted = "a finite number"
        if above is not None:
            wanted += f" above {above:g}"
        if least is not None:
            wanted += f" of at least {least:g}"
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            raise _refuse(where, wanted, value)
        if (above is not None and not value > above) or (least is not None and not value >= least):
            raise _refuse(where, wanted, value)
        return float(value)

    return schema


def _is_finite(value: float) -> bool:
    try:
        return isfinite(float(value))
    except OverflowError:  # a whole number beyond what a float holds
        return False


def optional(inner: Schema) -> Schema:
    """Make a schema of null or what `inner` takes."""
    return lambda value, where: None if value is None else inner(value, where)


def listing(item: Schema) -> Schema:
    """Make a schema of a list of what `item` takes."""

    def schema(value: Any, where: str) -> list[Any]:
        if not isinstance(value, list):
            raise _refuse(where, "a list", value)
        return [item(v, f"{where}: number {i + 1}") for i, v in enumerate(value)]

    return schema


def table(item: Schema) -> Schema:
    """Make a schema of an object with any names, each with what `item` takes."""

    def schema(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _refuse(where, "a JSON object", value)
        return {name: item(v, f"{where}: {name!r}") for name, v in value.items()}

    return schema


def record(fields: Mapping[str, Schema], required: tuple[str, ...] = (), others: bool = False) -> Schema:
    """Make a schema of an object with these fields. others: further fields are left out, not refused."""

    def schema(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _refuse(where, "a JSON object", value)
        for name in value if not others else ():
            if name not in fields:
                near = get_close_matches(name, fields, 1, 0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"the names are: {', '.join(fields)}"
                raise CheckpointError(f"{where}: there is no field {name!r}; {hint}")
        for name in required:
            if name not in value:
                raise CheckpointError(f"{where}: has no {name!r}")
        return {n: fields[n](v, f"{where}: {n}") for n, v in value.items() if n in fields}

    return schema
