"""Reading checkpoints that ``torch.save`` wrote (.pth, .pt, .ckpt, .bin): where their tensors stand.

Such a file is a zip archive whose records are stored uncompressed: a pickle that describes the tensors, and
one record per storage. The pickle is read by ``torch.load(weights_only=True, mmap=True)``, which runs no code
from it and reads no weight. From then on a tensor is an offset and a length, as in a safetensors file, and
is streamed like one.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..formats.errors import CheckpointError
from .dtypes import dtype_name
from .header import TensorInfo

if TYPE_CHECKING:
    import torch

MAGIC = b"PK\x03\x04"
"""How a file of ``torch.save`` begins, since torch 1.6."""

OLD_MAGIC = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How a bare pickle begins: files of older versions of torch, and of other programs."""

ENDINGS = (".pth", ".pt", ".ckpt", ".bin")
"""What such files are named."""

_NESTED = ("state_dict", "model_state_dict", "model", "module", "params_ema", "params", "weights")
"""Keys under which trainers keep the weights, the surest first."""

_LOCAL_HEADER = 30
_PAGE = 4096
_COMPARED = 64


def read_pickled(file: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a file that ``torch.save`` wrote, by name, in order of the data.

    Weights are looked for under the keys that trainers use (``state_dict``, ``model``, ...), else at the top;
    dictionaries in dictionaries give names with dots. CheckpointError for a file that is no such archive,
    that ``weights_only`` refuses, without tensors, and for tensors that are not plain (sparse, quantized, of
    a dtype that safetensors has not).
    """
    with open(file, "rb") as raw:
        records = _records(file, raw)
        tensors = dict(_tensors(_weights(_loaded(file)), str(file)))
        if not tensors:
            raise CheckpointError(f"{file}: holds no tensors, neither at its top nor under {_some_keys()}")
        for name, tensor in tensors.items():
            _require_plain(tensor, f"{file}: tensor {name!r}")
        base = _base(file, raw, list(tensors.values()), records)
    entries = [_info(file, name, tensor, base) for name, tensor in tensors.items()]
    return {info.name: info for info in sorted(entries, key=lambda t: t.offset)}


def _records(file: Path, raw: BinaryIO) -> dict[int, int]:
    """Return {offset in the file: size} of the storages. CheckpointError for no archive of torch's."""
    try:
        archive = zipfile.ZipFile(raw)
        members = archive.infolist()
        order = [archive.read(m) for m in members if m.filename.endswith("/byteorder") and m.file_size < 16]
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as e:
        raise CheckpointError(f"{file}: a damaged or cut off archive: {e}") from e
    if not any(m.filename.endswith("data.pkl") for m in members):
        raise CheckpointError(f"{file}: an archive (zip), but not one that torch.save wrote; unpack it first")
    if order and order[0] != b"little":
        raise CheckpointError(f"{file}: was saved on a big-endian machine; save it again on an ordinary one")
    found = {}
    for member in members:
        if "/data/" not in member.filename or not member.file_size:
            continue
        if member.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                f"{file}: its weights are compressed ({member.filename}); save it with torch.save"
            )
        raw.seek(member.header_offset)
        head = raw.read(_LOCAL_HEADER)
        skipped = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        found[member.header_offset + _LOCAL_HEADER + skipped] = member.file_size
    return found


def _loaded(file: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as e:
        raise CheckpointError(_refused(file, str(e))) from None
    except Exception as e:  # a damaged pickle can fail in any way; none of them runs code
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise CheckpointError(f"{file}: cannot be read as a file of torch.save: {reason[:200]}") from e


def _refused(file: Path, reason: str) -> str:
    """Say what torch did not load: its own message is about switching the check off."""
    found = re.search(r"GLOBAL ([\w.]{1,80})", reason)
    what = f" ({found.group(1)})" if found else ""
    return (
        f"{file}: holds more than weights{what}, which is not loaded because it could run code. If you trust "
        "the file, take the weights out where it was made: torch.save(model.state_dict(), 'weights.pt')"
    )


def _weights(content: Any, depth: int = 0) -> Any:
    """Return the dictionary that holds the weights: under one of the usual keys, else `content`."""
    if isinstance(content, Mapping) and depth < 4:
        for key in _NESTED:
            inner = content.get(key)
            if isinstance(inner, Mapping) and any(_tensors(inner, "", strict=False)):
                return _weights(inner, depth + 1)
    return content


def _tensors(content: Any, where: str, before: str = "", strict: bool = True) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, tensor) of nested dictionaries; what is no tensor is left out.

    CheckpointError, if `strict`, for a name that is no text and for dictionaries nested too deeply.
    """
    import torch

    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        if not isinstance(value, torch.Tensor | Mapping):
            continue
        name = f"{before}{key}"
        if not isinstance(key, str) or len(name) > 512 or not _is_text(name) or name.count(".") > 64:
            if strict:
                raise CheckpointError(f"{where}: {str(key)[:40]!r} cannot be a tensor's name")
            continue
        if isinstance(value, torch.Tensor):
            yield name, value
        else:
            yield from _tensors(value, where, f"{name}.", strict)


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def _require_plain(tensor: torch.Tensor, where: str) -> None:
    import torch

    odd = (
        "sparse" if tensor.layout is not torch.strided or tensor.is_nested else
        "quantized by torch" if tensor.is_quantized else
        "a lazy view" if tensor.is_conj() or tensor.is_neg() else
        "not stored in it" if tensor.device.type != "cpu" else ""
    )  # fmt: skip
    if odd:
        raise CheckpointError(f"{where} is {odd}; save it as a plain tensor")
    if dtype_name(tensor.dtype) is None:
        raise CheckpointError(f"{where}: {tensor.dtype} has no safetensors type; save it in another dtype")


def _base(file: Path, raw: BinaryIO, tensors: list[torch.Tensor], records: Mapping[int, int]) -> int:
    """Return the address in memory of the file's first byte: torch maps the file as a whole.

    It is the one address from which every storage lies on a record of its size, with the record's bytes.
    """
    storages = {s.data_ptr(): s for s in (t.untyped_storage() for t in tensors) if s.nbytes()}
    if not storages:
        return 0
    first = max(storages.values(), key=lambda s: s.nbytes())
    for offset in (offset for offset, size in records.items() if size == first.nbytes()):
        base = first.data_ptr() - offset
        if base % _PAGE == 0 and all(_lies_on(s, base, records, raw) for s in storages.values()):
            return base
    raise CheckpointError(f"{file}: its tensors are not stored as torch.save stores them; save it again")


def _lies_on(storage: Any, base: int, records: Mapping[int, int], raw: BinaryIO) -> bool:
    import torch

    offset = storage.data_ptr() - base
    if records.get(offset) != storage.nbytes():
        return False
    raw.seek(offset)
    head = raw.read(_COMPARED)
    memory = torch.empty(0, dtype=torch.uint8).set_(storage)[: len(head)]
    return memory.numpy().tobytes() == head[: storage.nbytes()]


def _info(file: Path, name: str, tensor: torch.Tensor, base: int) -> TensorInfo:
    dtype, size = dtype_name(tensor.dtype), tensor.numel() * tensor.element_size()
    assert dtype is not None
    offset = tensor.data_ptr() - base if size else 0
    strides = None if tensor.is_contiguous() else tuple(tensor.stride())
    return TensorInfo(name, dtype, tuple(tensor.shape), file, offset, size, strides=strides)


def _some_keys() -> str:
    return ", ".join(_NESTED[:3])
