"""Tensors that should be in a quantized file as they are in its original: compared byte for byte."""

import torch

from ...files.checkpoint import Checkpoint, TensorInfo
from ...files.dtypes import torch_dtype
from ...folding.factors import Folds
from ..stored.judge import Problem
from ..stored.record import Record, digest

_ELEMENTS = 1 << 21


def changed(
    original: Checkpoint,
    source: str,
    quantized: Checkpoint,
    name: str,
    record: Record | None = None,
    folds: Folds | None = None,
) -> Problem | None:
    """Return the problem with a tensor that should be as in the original, or None. Reads both in pieces.

    A change that the file's record names is only told, where the bytes are those that were written.
    folds: those of the file; a tensor that they change should be the original's, folded.
    """
    before, after = original.tensors[source], quantized.tensors[name]
    if folds is not None and name in folds.tensors:
        if _is_folded(original, before, quantized, after, folds):
            return None
        kind, text = "changed tensor", "is not the original's with the file's folds in it"
    elif before.dtype == after.dtype:
        count = _unequal_bytes(original, before, quantized, after)
        if not count:
            return None
        kind, text = "changed tensor", f"{count} of its {after.nbytes} bytes differ from the original's"
    else:
        kind, text = "changed dtype", f"{before.dtype} became {after.dtype}"
        known = None not in (torch_dtype(before.dtype), torch_dtype(after.dtype))
        if not known or not _same_when_cast(original, before, quantized, after):
            kind, text = "changed tensor", f"{text} with other values"
    entry = record.tensor(name) if record else None
    if entry is None:
        said = (
            "the file's record does not name it" if record else "nothing in the file says that it was meant"
        )
        return Problem(kind, name, f"{text}; {said}")
    if not as_written(quantized, entry.tensors, entry.digest):
        return Problem("changed since written", name, f"{text}; it was {entry.what}, and then something else")
    if torch_dtype(after.dtype) is not None and not _finite(quantized, after):
        return Problem("NaN or Inf", name, f"{entry.what}, and holds NaN or Inf")
    return Problem(entry.what, name, "as the file's record says", fatal=False)


def _is_folded(
    original: Checkpoint, before: TensorInfo, quantized: Checkpoint, after: TensorInfo, folds: Folds
) -> bool:
    """Tell whether a tensor is the original's, folded, to the last digit but one of its dtype."""
    dtype = torch_dtype(after.dtype)
    if dtype is None or not dtype.is_floating_point or torch_dtype(before.dtype) is None:
        return False
    columns = before.shape[1] if len(before.shape) > 1 else 1
    rows = before.shape[0] if len(before.shape) > 1 else before.numel
    step = max(1, _ELEMENTS // columns) if columns > 1 else rows  # a vector needs all that is added to it
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        x, y = (
            read_elements(c, i, start * columns, stop * columns)
            for c, i in ((original, before), (quantized, after))
        )
        x = x.double() if columns == 1 else x.view(-1, columns).float()
        want = folds.apply(after.name, x, start).reshape(-1).double()
        error = (want.to(dtype).double() - y.double()).abs()
        if not bool((error <= 2 * torch.finfo(dtype).eps * want.abs() + torch.finfo(dtype).tiny).all()):
            return False
    return True


def as_written(checkpoint: Checkpoint, names: tuple[str, ...], expected: str) -> bool:
    """Tell whether tensors still have the bytes that a digest in the file's record was made of."""
    tensors = checkpoint.tensors
    if any(n not in tensors for n in names):
        return False

    def read(name: str, start: int, count: int) -> bytes:
        raw = bytearray(count)
        checkpoint.read_into(tensors[name], memoryview(raw), start)
        return bytes(raw)

    return digest(names, {n: tensors[n].nbytes for n in names}, read) == expected


def read_elements(checkpoint: Checkpoint, info: TensorInfo, start: int, stop: int) -> torch.Tensor:
    """Read elements [start, stop) of a tensor in its stored dtype, flat. torch must have the dtype."""
    dtype = torch_dtype(info.dtype)
    assert dtype is not None
    raw = torch.empty((stop - start) * dtype.itemsize, dtype=torch.uint8)
    checkpoint.read_into(info, raw.numpy().data, start * dtype.itemsize)
    return raw.view(dtype)


def _unequal_bytes(a: Checkpoint, before: TensorInfo, b: Checkpoint, after: TensorInfo) -> int:
    size, step = before.nbytes, 4 * _ELEMENTS
    x, y = (torch.empty(min(size, step), dtype=torch.uint8) for _ in range(2))
    unequal = 0
    for start in range(0, size, step):
        n = min(step, size - start)
        a.read_into(before, x[:n].numpy().data, start)
        b.read_into(after, y[:n].numpy().data, start)
        if not torch.equal(x[:n], y[:n]):
            unequal += int((x[:n] != y[:n]).sum())
    return unequal


def _same_when_cast(a: Checkpoint, before: TensorInfo, b: Checkpoint, after: TensorInfo) -> bool:
    dtype = torch_dtype(after.dtype)
    assert dtype is not None
    for start in range(0, before.numel, _ELEMENTS):
        stop = min(start + _ELEMENTS, before.numel)
        x, y = read_elements(a, before, start, stop), read_elements(b, after, start, stop)
        if not torch.equal(x.to(dtype).view(torch.uint8), y.view(torch.uint8)):
            return False
    return True


def _finite(checkpoint: Checkpoint, info: TensorInfo) -> bool:
    for start in range(0, info.numel, _ELEMENTS):
        values = read_elements(checkpoint, info, start, min(start + _ELEMENTS, info.numel))
        if values.is_floating_point() and not bool(torch.isfinite(values.float()).all()):
            return False
    return True
