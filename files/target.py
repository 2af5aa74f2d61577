"""Where a file may be written: the one decision for every command and every kind of file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from ..formats.errors import CheckpointError, ConversionError
from .regular import kind_of, unreadable


def require_target(
    path: Path,
    inputs: Iterable[str | os.PathLike[str]] = (),
    what: str = "output",
    *,
    in_folder: bool = True,
) -> Path:
    """Return `path` when a regular file may be written there, now or over one that is there.

    inputs: every file and folder that the command reads; one of them is never a target, by whatever name or
        link it is reached.
    what: what is to be written, for messages. in_folder: its folder has to be there already.

    ConversionError for an input, a missing folder, and for anything there that is no regular file: a folder,
    device, pipe, socket or symbolic link.
    """
    mode = _mode(path)
    if mode is not None and stat.S_ISDIR(mode):
        raise ConversionError(f"{path}: is a folder; name the file to write")
    for file in inputs:
        if _same(path, file):
            raise ConversionError(f"{path}: the {what} is the input; choose another name with -o")
    if mode is not None and (kind := kind_of(mode)):
        raise ConversionError(f"{path}: is {kind}; only a regular file is written or replaced")
    parent = _mode(path.parent, follow=True) if in_folder else stat.S_IFDIR
    if parent is None or not stat.S_ISDIR(parent):
        raise ConversionError(f"{path.parent}: no such folder for the {what}; create it first")
    return path


def require_scratch(path: Path, output: Path, inputs: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Refuse a file beside `output` in which work on it stands, when another's file has that name.

    ConversionError for an input, and for anything but a regular file that has no other name, unless that is
    the output's: a run was stopped then just between giving the one name and taking the other.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as e:
        raise CheckpointError(unreadable(path, e)) from e
    if any(_same(path, file) for file in inputs):
        raise ConversionError(
            f"{path}: is an input, and the name under which {output.name} would be written; "
            f"choose another name with -o"
        )
    # From one look: whoever works on the output may take the file away at any time.
    shared = found.st_nlink > 1 and not _is(found, output)
    kind = kind_of(found.st_mode) or ("a file with a second name" if shared else "")
    if kind:
        raise ConversionError(
            f"{path}: is {kind}, where the unfinished {output.name} would be written; "
            f"remove it, or choose another name with -o"
        )


def require_absent(path: Path, overwrite: bool) -> None:
    """Raise ConversionError when there is a file and it is not to be replaced."""
    if not overwrite and _mode(path) is not None:
        raise already_exists(path)


def already_exists(path: Path, why: str = "it is not the result of this very command") -> ConversionError:
    """Return the error for a file that is there and is not to be replaced."""
    return ConversionError(
        f"{path}: exists, and {why}; --overwrite (in Python overwrite=True) replaces it, "
        f"-o names another file"
    )


def _mode(path: Path, follow: bool = False) -> int | None:
    """Return what is at a path, None for nothing; ConversionError for a path that cannot be looked at."""
    try:
        return os.stat(path, follow_symlinks=follow).st_mode
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise CheckpointError(unreadable(path, e)) from e


def _is(found: os.stat_result, path: Path) -> bool:
    try:
        return os.path.samestat(found, os.stat(path))
    except (OSError, ValueError):
        return False


def _same(path: Path, file: str | os.PathLike[str]) -> bool:
    try:
        return os.path.samefile(path, file)
    except (OSError, ValueError):
        return os.path.abspath(path) == os.path.abspath(file)
