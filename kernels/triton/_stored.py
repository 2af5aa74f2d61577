"""The tuner's choices on disk: one JSON file per GPU and Triton version, shared by all processes.

An entry is ``{"choice": label, "microseconds": {label: time}}``. The file lies in the user's cache and
may be anything: what cannot be read counts as empty, in one line of the log.
"""

import contextlib
import json
import logging
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton

from ._arch import Arch

MAX_BYTES = 16 << 20
"""A larger file is none of ours: an entry takes some 300 bytes."""

_log = logging.getLogger("convert_to_quant.kernels")


def cache_path(arch: Arch) -> Path:
    """Return where the choices for this GPU and this Triton are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    name = re.sub(r"[^A-Za-z0-9]+", "-", arch.name).strip("-").lower()
    return Path(root) / "convert_to_quant" / f"{name}-triton-{triton.__version__}.json"


def read(path: Path) -> dict[str, dict]:
    """Return the entries of a file that look like entries; {} where there is no file, or no readable one."""
    try:
        table = json.loads(_bytes(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        _log.warning("%s holds no tuning results and is ignored: %s", path, _short(error))
        return {}
    entries = table.items() if isinstance(table, dict) else ()
    return {k: v for k, v in entries if isinstance(v, dict) and isinstance(v.get("choice"), str)}


def add(path: Path, entries: dict[str, dict]) -> dict[str, dict]:
    """Merge `entries` into the file and return all that it then holds.

    Processes take turns, and the file is replaced as a whole. A failure is one line in the log: it
    costs only a later tuning.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.parent):
            merged = {**read(path), **entries}
            _replace(path, merged)
            return merged
    except OSError as error:
        _log.warning("tuning results were not kept: %s", error)
        return entries


def _bytes(path: Path) -> bytes:
    """Return a regular file's bytes. A pipe in its place is neither waited for nor read."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES:
            raise ValueError(f"not a regular file of at most {MAX_BYTES >> 20} MiB")
        return file.read()


def _replace(path: Path, table: dict[str, Any]) -> None:
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(table, file, indent=1, sort_keys=True)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, where the platform has one; elsewhere a simultaneous entry may be lost."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _short(error: Exception) -> str:
    """Return the error's first line, printable and short: it may quote the file."""
    first = (str(error) or type(error).__name__).splitlines()[0]
    return "".join(c if c.isprintable() else "?" for c in first)[:200]
