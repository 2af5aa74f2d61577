"""Files that have their name only when they are whole: written beside it, synced, renamed."""

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from ..formats.errors import ConversionError
from .target import already_exists, require_target


def publish(part: Path, path: Path, replace: bool) -> None:
    """Give the written and synced `part` the name `path`, in one step that either happens or does not.

    ConversionError when it is not to replace a file and there is one; `part` stays then.
    """
    if replace:
        os.replace(part, path)
    else:
        _name(part, path)
    with contextlib.suppress(OSError):  # makes the rename durable, where folders can be synced
        fd = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _name(part: Path, path: Path) -> None:
    """Rename, never over a file that came meanwhile: only a new link is refused by the system itself."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise already_exists(path) from None
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise already_exists(path) from None
        os.replace(part, path)
    else:
        part.unlink()


@contextlib.contextmanager
def new_file(
    path: Path, inputs: Iterable[str | os.PathLike[str]] = (), overwrite: bool = True
) -> Iterator[BinaryIO]:
    """Yield a file to write, which is `path` once the block ends; when it fails `path` is what it was.

    inputs: files that must never be written over. Until it is whole it has a name of its own beside `path`,
    so that two who write one file do not mix: one of the two whole files stays.
    ConversionError as `require_target`, and for a file that is there when `overwrite` is False.
    """
    require_target(path, inputs)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        fd = os.open(part, flags, 0o666)
    except OSError as e:
        raise ConversionError(f"{path}: cannot be written: {e.strerror or e}") from e
    try:
        with os.fdopen(fd, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        publish(part, path, overwrite)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
