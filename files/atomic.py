"""Files that have their name only when they are whole: written as ``<name>.part``, synced, renamed."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def part_of(path: Path) -> Path:
    """Return where a file is written until it is whole: beside it, so that a rename can publish it."""
    return path.with_name(path.name + ".part")


def publish(path: Path) -> None:
    """Give the written and synced `part_of` its name, in one step that either happens or does not."""
    os.replace(part_of(path), path)
    with contextlib.suppress(OSError):  # makes the rename durable, where folders can be synced
        fd = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write, which is `path` once the block ends; when it fails `path` is what it was."""
    part = part_of(path)
    try:
        with open(part, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        publish(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
