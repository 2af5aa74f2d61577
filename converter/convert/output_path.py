"""Where the output of a conversion goes."""

from __future__ import annotations

import os
from pathlib import Path

from ...files.checkpoint import Checkpoint
from ...formats.errors import ConversionError
from ..options.settings import Settings


def output_path(checkpoint: Checkpoint, settings: Settings) -> Path:
    """The output's path. ConversionError when that is a folder or one of the input's files."""
    path = Path(settings.output_file) if settings.output_file else default_output(checkpoint.path, settings)
    return usable_output(path, checkpoint)


def usable_output(path: Path, checkpoint: Checkpoint) -> Path:
    """`path`. ConversionError when it is a folder or one of the input's files."""
    if path.is_dir():
        raise ConversionError(f"{path}: is a folder; name the file to write")
    if any(path.exists() and os.path.samefile(path, f) for f in (*checkpoint.files, checkpoint.path)):
        raise ConversionError(f"{path}: the output is the input; choose another name with -o")
    return path


def default_output(source: Path, settings: Settings, folder: Path | None = None) -> Path:
    """The path that a model gets when none is named: in `folder`, or beside it, named after the format."""
    return (folder or source.parent) / f"{model_stem(source)}-{_format_tag(settings)}.safetensors"


def model_stem(source: Path) -> str:
    """A model's name without the endings of its file or index."""
    name = source.name
    for ending in (".safetensors.index.json", ".safetensors"):
        name = name.removesuffix(ending)
    return name


def _format_tag(settings: Settings) -> str:
    mode = {"row": "int8_row", "tensor": "int8_tensor", "block": f"int8_block{settings.block_size}"}
    return mode[settings.scaling_mode] + ("_convrot" if settings.rotates() else "")
