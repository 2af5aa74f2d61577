"""Files at addresses that are neither a web server's nor the hub's, by fsspec: s3://, gs://, memory://."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...formats.errors import CheckpointError
from .address import RemoteFile
from .extra import missing
from .source import RangeSource, Trouble, changed

_FOR_GOOD = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError)
_LISTED = 10_000


class FsspecSource(RangeSource):
    """A file in a file system of fsspec's. Its version is fsspec's key of its properties: ETag, date, ..."""

    def __init__(self, place: RemoteFile):
        super().__init__(place)
        self._system, self._path = file_system(place)
        self.size, self.version = self._look()

    def _look(self) -> tuple[int, str]:
        try:
            self._system.invalidate_cache()
            found = self._system.info(self._path)
            return int(found["size"]), str(self._system.ukey(self._path))
        except Exception as e:  # each file system has its own kinds
            raise self._told(e) from None

    def fetch(self, offset: int, buffer: memoryview) -> int:
        """See `RangeSource.fetch`. The properties are asked for again after each part."""
        try:
            data = self._system.cat_file(self._path, start=offset, end=offset + len(buffer))
        except _FOR_GOOD as e:
            raise self._told(e) from None
        except Exception as e:
            raise Trouble(_reason(e)) from None
        if len(data) > len(buffer):
            raise CheckpointError(f"{self.place}: {self._system.protocol} gives more bytes than asked for")
        if self._look() != (self.size, self.version):
            raise changed(self.place)
        if not data:
            raise Trouble("no byte came")
        buffer[: len(data)] = data
        return len(data)

    def _told(self, error: Exception) -> CheckpointError:
        if isinstance(error, FileNotFoundError):
            return CheckpointError(f"{self.place}: no such file there")
        return CheckpointError(f"{self.place}: cannot be read: {_reason(error)}")

    def disconnect(self) -> None:
        """Nothing stays open."""


class FileSystem:
    """A file system of fsspec's: a `Store`."""

    def __init__(self, place: RemoteFile):
        self._system, self._path = file_system(place)

    def at(self, place: RemoteFile) -> RemoteFile:
        """Return the address as it is."""
        return place

    def listing(self, place: RemoteFile) -> Sequence[str] | None:
        """Return the names in a folder, None for what is no folder."""
        try:
            if not self._system.isdir(self._path):
                return None
            names = (str(n).rstrip("/").rpartition("/")[2] for n in self._system.ls(self._path, detail=False))
            return [name for name, _ in zip(names, range(_LISTED), strict=False)]
        except Exception as e:
            raise CheckpointError(f"{place}: cannot be listed: {_reason(e)}") from None

    def source(self, place: RemoteFile) -> RangeSource:
        """Open a file."""
        return FsspecSource(place)


def file_system(place: RemoteFile) -> tuple[Any, str]:
    """Return fsspec's file system for an address, and the path in it.

    CheckpointError where fsspec, or what it needs for this address, is not installed.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise missing(place, "fsspec") from None
    try:
        system, path = url_to_fs(place.address)
    except ImportError as e:
        raise CheckpointError(f"{place}: {place.scheme}:// needs a package: {_reason(e)}") from None
    except ValueError as e:
        raise CheckpointError(f"{place}: no way to read {place.scheme}:// is known: {_reason(e)}") from None
    except Exception as e:
        raise CheckpointError(f"{place}: cannot be reached: {_reason(e)}") from None
    return system, path


def _reason(error: Exception) -> str:
    """Return the first line of an error's text, without addresses: they may be signed."""
    lines = str(error).splitlines() or [""]
    words = [word for word in lines[0][:300].split() if "://" not in word]
    return f"{type(error).__name__}{': ' if words else ''}{' '.join(words)}"
