"""The files of a checkpoint elsewhere, found as those of one here are, and ready to be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from ...formats.errors import CheckpointError
from ..index import ENDING, SHARD, names_in_index
from ..regular import parse_json
from .address import RemoteFile
from .ahead import RemoteReader
from .filesystems import FileSystem
from .hub import Hub
from .source import RangeSource
from .web import WebSource

_OPENED_AT_ONCE = 8
_LARGEST_INDEX = 64 << 20
_LISTED = 5


class Store(Protocol):
    """Where files are."""

    def at(self, place: RemoteFile) -> RemoteFile:
        """Return the address of what is there now, where an address can name more than one state of it."""

    def listing(self, place: RemoteFile) -> Sequence[str] | None:
        """Return the paths of the files in a folder and, if known, below it; None for what is no folder."""

    def source(self, place: RemoteFile) -> RangeSource:
        """Open a file. CheckpointError, naming it, when it cannot be read."""


class Web:
    """All web servers: no folders, and one state."""

    def at(self, place: RemoteFile) -> RemoteFile:
        """See `Store`."""
        return place

    def listing(self, place: RemoteFile) -> None:
        """See `Store`."""
        return

    def source(self, place: RemoteFile) -> RangeSource:
        """See `Store`."""
        return WebSource(place, place.address)


@dataclass(frozen=True)
class RemoteFiles:
    """The files of a checkpoint, in order, and the tensors that its index promises."""

    readers: Mapping[RemoteFile, RemoteReader]
    expected: tuple[str, ...] = ()

    def close(self) -> None:
        """Close all of them."""
        for reader in self.readers.values():
            reader.close()


def open_remote(place: RemoteFile) -> RemoteFiles:
    """Open a file, an index with its shards, or a folder of either.

    CheckpointError for what is not there or holds no checkpoint, and for a folder of several: the message
    lists them.
    """
    store = _store(place)
    here = store.at(place)
    found = store.listing(here)
    files = [here] if found is None else [here.inside(name) for name in _chosen(place, found)]
    expected: list[str] = []
    if files[0].name.endswith(".json"):
        names, expected = _index(store, files[0])
        files = [files[0].sibling(name) for name in names]
    with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
        sources = list(pool.map(store.source, files))
    return RemoteFiles({s.place: RemoteReader(s) for s in sources}, tuple(expected))


def open_source(place: RemoteFile) -> RangeSource:
    """Open one file anew. CheckpointError when it is not there any more."""
    return _store(place).source(place)


def _store(place: RemoteFile) -> Store:
    if place.scheme == "hf":
        return Hub(place)
    return Web() if place.scheme in ("http", "https") else FileSystem(place)


def _index(store: Store, place: RemoteFile) -> tuple[list[str], list[str]]:
    source = store.source(place)
    try:
        if source.size > _LARGEST_INDEX:
            raise CheckpointError(f"{place}: {source.size} bytes are too many for an index")
        text = source.read(0, source.size)
    finally:
        source.close()
    try:
        value = parse_json(text.decode("utf-8"), str(place))
    except UnicodeDecodeError as e:
        raise CheckpointError(f"{place}: is not UTF-8 text: byte {e.start} fits no character") from e
    return names_in_index(value, place)


def _chosen(place: RemoteFile, paths: Sequence[str]) -> list[str]:
    """Return the names of the one checkpoint in a folder: its index, its shards or its file."""
    names = sorted(path for path in paths if "/" not in path)
    indices = [name for name in names if name.endswith(ENDING)]
    shards = [name for name in names if name.endswith(".safetensors")]
    if len(indices) == 1:
        return indices
    if not indices and shards and (len(shards) == 1 or _are_one_model(shards)):
        return shards
    if not shards:
        inner = sorted({p.rpartition("/")[0] for p in paths if p.endswith(".safetensors")})
        what, choices = "no .safetensors file in this folder", inner
    else:
        what, choices = f"holds {len(indices or shards)} checkpoints", indices or shards
    more = ", ..." if len(choices) > _LISTED else ""
    offer = ", ".join(str(place.inside(name)) for name in choices[:_LISTED]) + more
    raise CheckpointError(f"{place}: {what}" + (f"; name one of: {offer}" if choices else ""))


def _are_one_model(shards: Sequence[str]) -> bool:
    found = [SHARD.fullmatch(name) for name in shards]
    return all(found) and len({match[1] for match in found if match}) == 1
