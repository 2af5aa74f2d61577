"""Opening files that others made: regular files only, and every failure told with the file's name."""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import Any

from ..formats.errors import CheckpointError

_READ_ONLY = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
"""Without blocking: a pipe that takes a file's place between two looks must not hang the program."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISLNK, "a symbolic link"),
)


def kind_of(mode: int) -> str:
    """Return "" for the mode of a regular file, else what it is: "a folder", "a pipe", ..."""
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "" if stat.S_ISREG(mode) else "no file")


def open_regular(path: str | os.PathLike[str]) -> int:
    """Return a read-only descriptor of a regular file, never waiting for one that is something else.

    CheckpointError, naming the file, for a folder, pipe, socket or device, and for one that cannot be opened.
    """
    try:
        _require_regular(path, os.stat(path).st_mode)  # opening a device can already do something
        fd = os.open(path, _READ_ONLY)
    except CheckpointError:
        raise
    except (OSError, ValueError) as e:
        raise CheckpointError(unreadable(path, e)) from e
    try:
        _require_regular(path, os.fstat(fd).st_mode)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _require_regular(path: str | os.PathLike[str], mode: int) -> None:
    if kind := kind_of(mode):
        raise CheckpointError(f"{os.fspath(path)}: is {kind}, not a file")


def unreadable(path: str | os.PathLike[str], error: Exception) -> str:
    """Say in one sentence why a file cannot be read: the system's reason, or a path that it cannot have."""
    if isinstance(error, FileNotFoundError):
        return f"{os.fspath(path)}: no such file"
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        if error.errno == errno.EMFILE:
            reason += "; allow this process more of them (ulimit -n)"
        return f"{os.fspath(path)}: cannot be read: {reason}"
    return f"{os.fspath(path)!r}: cannot be the name of a file: {error}"


def read_text(path: str | os.PathLike[str], most: int | None = None) -> str:
    """Return the content of a UTF-8 text file. CheckpointError as `open_regular`, and for other bytes.

    most: bytes that it may have, None for any number; CheckpointError where there are more.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as f:
            content = f.read(-1 if most is None else most + 1)
        if most is not None and len(content) > most:
            raise CheckpointError(f"{path}: is larger than the {most / 2**20:g} MiB that it may have")
        return content.decode("utf-8")
    except UnicodeDecodeError as e:
        raise CheckpointError(f"{path}: is not UTF-8 text: byte {e.start} fits no character") from e
    except OSError as e:
        raise CheckpointError(unreadable(path, e)) from e


def parse_json(text: str, where: str, **how: Any) -> Any:
    """Return the value of a JSON text. how: as for `json.loads`.

    CheckpointError, beginning with `where`, for what is no JSON, is nested too deeply to be read, or holds
    half of a surrogate pair, which no file and no terminal takes.
    """
    try:
        value = json.loads(text, **how)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError as e:
        raise CheckpointError(f"{where}: holds half of a surrogate pair, which is no character") from e
    except RecursionError as e:
        raise CheckpointError(f"{where}: JSON nested too deeply") from e
    except ValueError as e:
        raise CheckpointError(f"{where}: not valid JSON: {e}") from e
    return value


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the value in a JSON file. CheckpointError, naming the file, as `read_text` and `parse_json`."""
    return parse_json(read_text(path), os.fspath(path))
