"""Copying a tensor's bytes from a checkpoint to an output, as they are."""

from __future__ import annotations

from collections.abc import Callable

from .checkpoint import Checkpoint, TensorInfo
from .remote.address import RemoteFile
from .writer import OutputFile

_PIECE = 8 << 20


def copy_tensor(
    checkpoint: Checkpoint,
    info: TensorInfo,
    file: OutputFile,
    name: str,
    seen: Callable[[memoryview], None] = lambda piece: None,
) -> None:
    """Copy a tensor's bytes, wherever they lie, to the output's `name`; inside the kernel if it can.

    seen: is given the bytes of one that is elsewhere, in pieces of whole elements, as they come.
    """
    start = 0
    for piece in info.pieces:
        if isinstance(piece.file, RemoteFile):
            for done in range(0, piece.nbytes, _PIECE):
                part = memoryview(bytearray(min(_PIECE, piece.nbytes - done)))
                checkpoint.read_into(piece, part, done)
                seen(part)
                file.write_part(name, start + done, part)
        else:
            file.copy(name, checkpoint.descriptor(piece.file), piece.offset, start, piece.nbytes)
        start += piece.nbytes
