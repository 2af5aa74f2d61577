"""Writing tensors that are all there as one safetensors file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..formats.errors import CheckpointError
from .atomic import new_file
from .dtypes import dtype_name
from .header import OutputTensor, build_header

if TYPE_CHECKING:
    import torch

_CHUNK = 1 << 26


def save_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = True,
) -> Path:
    """Write plain tensors to `path`, whole or not at all; return the path.

    One tensor at a time is brought to the CPU. CheckpointError, naming the tensor, for a dtype that the
    format does not have; ConversionError as `new_file`.
    """
    path = Path(path)
    header, offsets, _ = build_header([_planned(n, t) for n, t in tensors.items()], metadata or {})
    with new_file(path, overwrite=overwrite) as f:
        f.write(header)
        for name in offsets:
            _write(f, tensors[name])
    return path


def _planned(name: str, tensor: torch.Tensor) -> OutputTensor:
    dtype = dtype_name(tensor.dtype)
    if dtype is None:
        raise CheckpointError(f"{name}: {tensor.dtype} has no safetensors type")
    return OutputTensor(name, dtype, tuple(tensor.shape))


def _write(f: BinaryIO, tensor: torch.Tensor) -> None:
    import torch  # a plan imports this package without it

    # ``to`` before all else: what ComfyUI gives for saving makes its values there.
    raw = tensor.to("cpu").detach().contiguous().flatten().view(torch.uint8).numpy()
    for start in range(0, raw.size, _CHUNK):
        f.write(raw[start : start + _CHUNK].data)
