"""What tells a file from a changed one: cheaply on this machine (`Stamp`), and on any (`fingerprint`)."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

from ..formats.errors import CheckpointError
from .regular import open_regular, unreadable
from .remote.address import Location, RemoteFile

_SAMPLES = 256
_SAMPLE = 4096


@dataclass(frozen=True)
class Stamp:
    """The state of a file at one moment: which it is, how large, and when it was last changed.

    Any write moves both times. Who then sets ``mtime`` back still leaves ``ctime``, and a file put in its
    place has another inode. What this cannot see: a write within the same tick of the file system's clock
    (some milliseconds) as the stamp, and one that goes round the file system.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True)
class RemoteStamp:
    """The state of a file elsewhere: its version (ETag, digest or date; "" where none is told) and size."""

    version: str
    size: int


def stamp(path: Path) -> Stamp:
    """Take a file's stamp. Take it before reading: a change is then seen whenever it comes.

    CheckpointError, naming the file, when it is gone or out of reach.
    """
    try:
        s = os.stat(path)
    except OSError as e:
        raise CheckpointError(unreadable(path, e)) from e
    return Stamp(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)


Stamps = Mapping[Location, Stamp | RemoteStamp]
"""The stamps of files, by where they are."""


def require_unchanged(stamps: Stamps) -> None:
    """Raise CheckpointError, naming the first file that is not what it was when its stamp was taken."""
    for path, before in stamps.items():
        if isinstance(path, RemoteFile):
            _require_unchanged_elsewhere(path, before)
        elif not path.exists() or stamp(path) != before:
            raise CheckpointError(
                f"{path}: was changed, replaced or removed while it was read; nothing was written: run again"
            )


def _require_unchanged_elsewhere(place: RemoteFile, before: Stamp | RemoteStamp) -> None:
    if place.scheme == "hf":  # at one commit, which no longer changes
        return
    from .remote.opening import open_source
    from .remote.source import changed

    source = open_source(place)
    source.close()
    if RemoteStamp(source.version, source.size) != before:
        raise changed(place)


def identity(stamps: Stamps) -> list[tuple[object, ...]]:
    """Return what tells these files, as they are, from any others, as JSON values.

    A file elsewhere of which no version is told is never the same again.
    """
    return [
        (place.without_state(), before.size, before.version or uuid.uuid4().hex)
        if isinstance(place, RemoteFile) and isinstance(before, RemoteStamp)
        else (str(Path(str(place)).resolve()), *astuple(before))
        for place, before in stamps.items()
    ]


def fingerprint(path: Path) -> str:
    """Return a digest of a file's size and of 256 pieces of 4 KiB, spread evenly from its begin to its end.

    The same on every machine, at a fixed cost: whole for files of up to 1 MiB; of larger ones it tells
    another model, or the same one trained further, though not every single changed value.
    """
    fd = open_regular(path)
    try:
        size = os.fstat(fd).st_size
        digest = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=16)
        last = max(0, size - _SAMPLE)
        starts = {last * i // (_SAMPLES - 1) for i in range(_SAMPLES)} if size > _SAMPLES * _SAMPLE else None
        with os.fdopen(fd, "rb", closefd=False) as f:
            if starts is None:
                digest.update(f.read())
            for start in sorted(starts or ()):
                f.seek(start)
                digest.update(f.read(_SAMPLE))
    except OSError as e:
        raise CheckpointError(unreadable(path, e)) from e
    finally:
        os.close(fd)
    return digest.hexdigest()
