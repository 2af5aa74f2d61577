"""The folds of a file as its header's metadata has them: stock loaders pass metadata over without a word.

JSON: ``version``; ``inputs`` and ``means``, how many inputs are folded and how many of them less their mean;
``data``: base64 of zlib of the places as JSON, one line, then every exponent as int8, then every mean as
float32 by planes of bytes. Exponents are small and means are rounded, so a channel takes about two bytes.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any

from ..files.regular import parse_json
from ..files.schema import listing, number, record, text, truth, whole
from ..formats.errors import CheckpointError
from .inputs import Columns, FoldedInput, Rows, by_tensor

if TYPE_CHECKING:
    from .factors import Factors, Folds

KEY = "convert_to_quant.fold"
"""The header's metadata key."""

_VERSION = 1
_MOST_BYTES = 1 << 26
"""Bytes of places and factors: those of Qwen-Image, the largest, are 6 MB."""


def encoded(folds: Folds) -> str:
    """Return the folds as the header holds them; the same for the same folds, on every machine."""
    import torch

    places = json.dumps([_listed(one) for one in folds.inputs], separators=(",", ":"))
    exponents = torch.cat([f.exponents for f in folds.factors])
    means = [f.mean for f in folds.factors if f.mean is not None]
    planes = torch.cat(means).view(torch.uint8).view(-1, 4).t().contiguous() if means else exponents[:0]
    raw = b"\n".join([places.encode("utf-8"), _bytes(exponents) + _bytes(planes)])
    data = base64.b64encode(zlib.compress(raw, 9)).decode("ascii")
    content = {"version": _VERSION, "inputs": len(folds.inputs), "means": len(means), "data": data}
    return json.dumps(content, separators=(",", ":"))


def _bytes(values: Any) -> bytes:
    return bytes(values.contiguous().view(-1).numpy().tobytes())


def _listed(one: FoldedInput) -> list[Any]:
    columns = [[c.layer, c.start, c.bias] for c in one.columns]
    rows = [[r.tensor, r.start, r.offset, r.shifts, r.flat] for r in one.rows]
    return [one.width, one.smooth, one.mean, one.repeats, one.head, columns, rows]


_CONTENT = record(
    {"version": whole(), "inputs": whole(), "means": whole(), "data": text()},
    required=("version", "inputs", "means", "data"),
)


def summary(metadata: Mapping[str, str]) -> str:
    """Say what is folded in a file: ``228 inputs folded, 228 of them less their mean``; "" for nothing."""
    if KEY not in metadata:
        return ""
    try:
        content = _content(metadata)
    except CheckpointError as e:
        return str(e)
    return f"{content['inputs']} inputs folded, {content['means']} of them less their mean"


def _content(metadata: Mapping[str, str]) -> dict[str, Any]:
    where = f"{KEY} in its metadata"
    content: dict[str, Any] = _CONTENT(parse_json(metadata[KEY], where), where)
    if content["version"] != _VERSION:
        raise CheckpointError(
            f"{where}: is of version {content['version']}, and {_VERSION} is read; update this program"
        )
    return content


def decoded(metadata: Mapping[str, str]) -> tuple[list[FoldedInput], list[Factors]]:
    """Return a file's folds; CheckpointError for a text that is none. Needs KEY in the metadata."""
    where = f"{KEY} in its metadata"
    raw = _inflated(_content(metadata)["data"], where)
    places, _, factors = raw.partition(b"\n")
    try:
        listed = parse_json(places.decode("utf-8"), where)
    except UnicodeDecodeError as e:
        raise CheckpointError(f"{where}: is damaged: {e}") from e
    inputs = [_input(one, f"{where}: input {i + 1}") for i, one in enumerate(listing(_any)(listed, where))]
    try:
        by_tensor(inputs)
    except ValueError as e:
        raise CheckpointError(f"{where}: {e}") from e
    return inputs, _factors(inputs, factors, where)


def _any(value: Any, where: str) -> Any:
    return value


def _inflated(data: str, where: str) -> bytes:
    try:
        inflate = zlib.decompressobj()
        raw = inflate.decompress(base64.b64decode(data, validate=True), _MOST_BYTES)
    except (binascii.Error, ValueError, zlib.error) as e:
        raise CheckpointError(f"{where}: is damaged: {e}") from e
    if not inflate.eof:
        raise CheckpointError(f"{where}: is damaged: it is cut short, or larger than any model's")
    return raw


def _natural(value: Any) -> Any:
    if not 0 <= value < 1 << 40:
        raise ValueError(f"must be a count, not {value}")
    return value


_FIELDS = (whole(_natural), truth(), truth(), whole(_natural), whole(_natural), listing(_any), listing(_any))
_COLUMNS = (text(), whole(_natural), truth())
_ROWS = (text(), whole(_natural), number(), truth(), truth())


def _each(fields: tuple[Any, ...], value: Any, where: str) -> list[Any]:
    """Read a list whose places have a schema each."""
    if not isinstance(value, list) or len(value) != len(fields):
        raise CheckpointError(f"{where}: must be a list of {len(fields)}")
    return [field(v, where) for field, v in zip(fields, value, strict=True)]


def _input(value: Any, where: str) -> FoldedInput:
    width, smooth, mean, repeats, head, columns, rows = _each(_FIELDS, value, where)
    one = FoldedInput(
        width,
        tuple(Columns(*_each(_COLUMNS, c, where)) for c in columns),
        tuple(Rows(*_each(_ROWS, r, where)) for r in rows),
        smooth,
        mean,
        repeats,
        head,
    )
    shared = repeats == 1 or (repeats > 1 and head > 0 and width % (repeats * head) == 0)
    if not (width and columns and rows and shared and (smooth or mean)):
        raise CheckpointError(f"{where}: its widths and heads do not fit together")
    return one


def _factors(inputs: list[FoldedInput], raw: bytes, where: str) -> list[Factors]:
    import torch

    from .factors import MOST, Factors

    counts = [one.factors for one in inputs]
    means = [one.factors if one.mean else 0 for one in inputs]
    if len(raw) != sum(counts) + 4 * sum(means):
        raise CheckpointError(f"{where}: is damaged: it has not as many factors as its inputs have channels")
    values = torch.frombuffer(bytearray(raw or b"\0"), dtype=torch.uint8)[: len(raw)]
    exponents = values[: sum(counts)].view(torch.int8)
    planes = values[sum(counts) :].view(4, -1).t().contiguous().view(-1)
    planes = planes.view(torch.float32) if planes.numel() else torch.zeros(0)
    if exponents.numel() and int(exponents.int().abs().amax()) > MOST:
        raise CheckpointError(f"{where}: is damaged: a factor is too large")
    if planes.numel() and not isfinite(float(planes.double().sum())):
        raise CheckpointError(f"{where}: is damaged: a mean is not finite")
    split = zip(inputs, exponents.split(counts), planes.split(means), strict=True)
    return [Factors(e.clone(), m.clone() if one.mean else None) for one, e, m in split]
