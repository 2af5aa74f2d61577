"""Damage to safetensors files and JSON texts, drawn from a seed: of bytes, of values, of structure."""

import copy
import json
import random
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 1.0, 0.5, 1e400, -0.0, 2**31, 2**63, 2**64, 10**30, "", "a", "\ud800",
    "\x00", "[/red]\x1b[31m", "F32", "I8", "BF16", "F8_E4M3", "F4", [], [0], [0, 0], [1, 2, 3], [[]], {},
    {"a": 1},
)  # fmt: skip
NAMES = (
    "weight",
    "weight_scale",
    "comfy_quant",
    "scale_weight",
    "input_scale",
    "bias",
    "pre_quant_scale",
    "scaled_fp8",
)
BYTES = (
    b"\xff",
    b"\x00",
    b"{",
    b"[" * 5000,
    b'"',
    b"9" * 5000,
    b"NaN",
    b"\\ud800",
    b"\xef\xbb\xbf",
    b"../" * 20,
)


PLACES = ("", ".", "..", "/", "../x", "\x1b[2J", "[bold]", "ü" * 50, "__metadata__", "\udfff")


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return a safetensors file with one to three things wrong, or possibly only odd."""
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    how = chance.randrange(10)
    if how == 0:
        return cut(data, chance)
    if how == 1:
        return bytes_changed(data, chance, min(len(data), 16 + length))
    for _ in range(chance.randint(1, 3)):
        header = changed(header, chance) if chance.random() < 0.6 else renamed(header, chance)
    raw = json.dumps(header).encode("utf-8", "surrogatepass")
    if how == 2:
        raw = bytes_changed(raw, chance, len(raw))
    if how == 3:
        rest = bytes_changed(rest, chance, len(rest))
    size = len(raw) if how != 4 else chance.choice([0, len(raw) - 1, len(raw) + 1, 2**40, 2**63, 10**8 + 1])
    return size.to_bytes(8, "little") + raw + rest


def cut(data: bytes, chance: random.Random) -> bytes:
    """Return a part of it, or it with something after it."""
    at = chance.choice([0, 1, 7, 8, 9, len(data) - 1, chance.randrange(len(data))])
    return data[:at] if chance.random() < 0.8 else data + data[:at]


def bytes_changed(data: bytes, chance: random.Random, below: int) -> bytes:
    """Return it with bytes replaced or put in, before position `below`."""
    for _ in range(chance.randint(1, 4)):
        at, new = chance.randrange(max(1, below)), chance.choice(BYTES)
        data = data[:at] + new + data[at + chance.choice([0, len(new)]) :]
    return data


def changed(value: Any, chance: random.Random) -> Any:
    """Return JSON with one value in it replaced, taken out, or wrapped, wherever it is."""
    value = copy.deepcopy(value)
    where, key = value, None
    while isinstance(where, dict | list) and where:
        inner = chance.choice(list(where) if isinstance(where, dict) else range(len(where)))
        if chance.random() < 0.3 or not isinstance(where[inner], dict | list) or not where[inner]:
            key = inner
            break
        where = where[inner]
    if key is None:
        return chance.choice(ODD)
    how = chance.randrange(4)
    if how == 0:
        del where[key]
    elif how == 1:
        where[key] = [where[key]] * chance.choice([1, 2, 70])
    elif how == 2 and isinstance(where[key], int):
        where[key] += chance.choice([-1, 1, 8, 2**32, -(2**33), 0.5])
    else:
        where[key] = copy.deepcopy(chance.choice(ODD))
    return value


def renamed(header: Any, chance: random.Random) -> Any:
    """Return a header in which a tensor has another name, or stands under two."""
    if not isinstance(header, dict) or not header:
        return header
    name = chance.choice(list(header))
    new = chance.choice(
        [
            f"{name.rpartition('.')[0]}.{chance.choice(NAMES)}",
            "a." * chance.choice([3, 300, 600]) + "weight",
            chance.choice(PLACES),
            f"model.diffusion_model.{name}",
            name.replace("0", "99999999999999999999"),
        ]
    )
    items = [(new if n == name and chance.random() < 0.8 else n, spec) for n, spec in header.items()]
    return dict([*items, (new, header[name])] if chance.random() < 0.3 else items)
