"""What a conversion says of its own doing in the file's header: changes that the tensors cannot explain.

Rounding to nearest needs no record: every value shows it. Other algorithms, merged LoRAs, corrected biases,
casts and tensors left out do: without one, a verification could not tell them from damage. Each entry has a
digest of what was written, so that a change afterwards shows.
"""

import hashlib
import json
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ...files.header import OutputTensor
from ...formats.names import WEIGHT, tensor_name
from ...names.prefixes import CHECKPOINT
from ...version import VERSION

KEY = "convert_to_quant"
"""The header's metadata key."""

_EMPTY = "0" * 16
_READ = 1 << 22

Read = Callable[[str, int, int], bytes]
"""Returns so many bytes of a tensor of the file, from a byte on: ``read(name, start, count)``."""


@dataclass(frozen=True)
class Entry:
    """One layer or tensor that is not simply rounded or kept.

    what: done to it, in a few words. algorithm: that rounded it, "" for a tensor that is not quantized.
    tensors: the names whose bytes `digest` is of, in order. merged: whether LoRAs are in it, which the
    original is without.
    """

    what: str
    algorithm: str
    tensors: tuple[str, ...]
    digest: str = _EMPTY
    merged: bool = False


@dataclass(frozen=True)
class Record:
    """The record of a file.

    layers: by name. tensors: kept tensors whose values change, by name. dropped: the original's tensors that
    were left out, with the reason. complete: whether every layer that is not named was rounded to nearest.
    """

    layers: Mapping[str, Entry] = field(default_factory=dict)
    tensors: Mapping[str, Entry] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    complete: bool = True

    def __bool__(self) -> bool:
        return bool(self.layers or self.tensors or self.dropped)

    def text(self) -> str:
        """Return it as the header holds it."""
        return json.dumps({"version": VERSION, **asdict(self)}, separators=(",", ":"))

    def less(self, dropped: Container[str], floats: Iterable[str]) -> "Record":
        """Return it for a file without the tensors `dropped`, whose layers `floats` are float again."""
        gone = set(floats)
        layers = {
            n: replace(e, tensors=tuple(t for t in e.tensors if t not in dropped), digest=_EMPTY)
            if any(t in dropped for t in e.tensors)
            else e
            for n, e in self.layers.items()
            if n not in gone and tensor_name(n, WEIGHT) not in dropped
        }
        tensors = {n: e for n, e in self.tensors.items() if n not in dropped}
        tensors |= {w: Entry("float again", "", (w,)) for w in (tensor_name(n, WEIGHT) for n in gone)}
        return Record(layers, tensors, self.dropped, self.complete)

    def layer(self, name: str) -> Entry | None:
        """Return the entry of a layer, under its name or with another prefix."""
        return _under_a_prefix(self.layers, name)

    def tensor(self, name: str) -> Entry | None:
        """Return the entry of a kept tensor, likewise."""
        return _under_a_prefix(self.tensors, name)


def read_record(metadata: Mapping[str, str]) -> Record | None:
    """Read the record of a file; None where it has none, or one that is of no use."""
    try:
        given = json.loads(metadata[KEY])
        layers, tensors = ({n: _entry(e) for n, e in given[part].items()} for part in ("layers", "tensors"))
        dropped = {str(n): str(why) for n, why in given["dropped"].items()}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    return Record(layers, tensors, dropped, bool(given.get("complete")))


def filled(
    metadata: Mapping[str, str],
    outputs: Iterable[OutputTensor],
    read: Read,
    anew: Container[str] = (),
) -> dict[str, str]:
    """Return a file's metadata with the digests of its record computed from the file; as long as before.

    anew: tensors that were changed; what else has a digest keeps it.
    """
    record = read_record(metadata)
    if record is None:
        return dict(metadata)
    sizes = {o.name: o.nbytes for o in outputs}
    layers, tensors = (
        {
            n: replace(e, digest=digest(e.tensors, sizes, read))
            if e.digest == _EMPTY or any(t in anew for t in e.tensors)
            else e
            for n, e in part.items()
        }
        for part in (record.layers, record.tensors)
    )
    return {**metadata, KEY: Record(layers, tensors, record.dropped, record.complete).text()}


def digest(names: Iterable[str], sizes: Mapping[str, int], read: Read) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of the tensors' bytes, one after the other."""
    total = hashlib.sha256()
    for name in names:
        for start in range(0, sizes[name], _READ):
            total.update(read(name, start, min(_READ, sizes[name] - start)))
    return total.hexdigest()[:16]


def _entry(given: Mapping[str, Any]) -> Entry:
    names = tuple(map(str, given["tensors"]))
    return Entry(
        str(given["what"]), str(given["algorithm"]), names, str(given["digest"]), bool(given["merged"])
    )


def _under_a_prefix(entries: Mapping[str, Entry], name: str) -> Entry | None:
    """Find a name as it is, else as it would be under another prefix; the entry's tensors move with it."""
    if name in entries:
        return entries[name]
    bare = next((name[len(p) :] for p in CHECKPOINT if p and name.startswith(p)), name)
    for other in (p + bare for p in CHECKPOINT):
        if other in entries:
            found = entries[other]
            ours = name.removesuffix(bare)
            theirs = other.removesuffix(bare)
            moved = tuple(ours + t.removeprefix(theirs) for t in found.tensors)
            return replace(found, tensors=moved)
    return None
