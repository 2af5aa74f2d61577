"""Sizes as people type them: 8GB, 7.5GiB, 900 MB, 60%, or bytes."""

import re

_UNITS = {"": 1} | {
    f"{letter}{ending}": base**power
    for power, letter in enumerate("kmgt", 1)
    for ending, base in (("", 1000), ("b", 1000), ("ib", 1024))
}
_UNITS["b"] = 1
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,9})?) ?([a-z]{0,3}|%)", re.ASCII)


def target_size(value: str | float) -> str:
    """Return a size in one spelling: ``60%``, or bytes; ValueError for what is none.

    kB, MB, GB and TB (also without B) are powers of 1000; KiB, MiB, GiB and TiB of 1024.
    """
    text = str(value).strip()
    found = _SIZE.fullmatch(text.lower())
    if not found or (found[2] != "%" and found[2] not in _UNITS):
        raise ValueError(f"a size is a number of bytes, 8GB, 7.5GiB or 60%, not {text!r}")
    number = float(found[1])
    if found[2] == "%":
        if not 0 < number <= 100:
            raise ValueError(f"a share of the input lies above 0% and at most at 100%, not {text}")
        return f"{number:g}%"
    size = int(number * _UNITS[found[2]])
    if size < 1:
        raise ValueError(f"a size must be at least one byte, not {text}")
    return str(size)


def size_in_bytes(size: str, whole: int) -> int:
    """Return the bytes of a size as `target_size` returns it; whole: what a share is a share of."""
    return int(whole * float(size[:-1]) / 100) if size.endswith("%") else int(size)


def shown(size: int) -> str:
    """Return bytes for people: ``8.00 GB``, ``954.3 MB``."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:,.{2 if unit == 10**9 else 1}f} {name}"
    return f"{size} bytes"
