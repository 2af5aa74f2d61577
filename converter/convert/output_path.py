"""Where the output of a conversion goes."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from ...files.checkpoint import Checkpoint
from ...formats import Asked
from ...formats.choose import chosen
from ...formats.errors import ConversionError
from ..options.settings import Settings
from ..plan.steps import Plan
from .named_format import require_honest_name


def output_path(checkpoint: Checkpoint, plan: Plan, settings: Settings) -> Path:
    """Return the output's path. ConversionError when that is a folder or one of the input's files."""
    path = Path(settings.output_file) if settings.output_file else default_output(checkpoint.path, plan)
    require_honest_name(path, plan)
    return usable_output(path, checkpoint)


def usable_output(path: Path, checkpoint: Checkpoint) -> Path:
    """Return `path`. ConversionError when it is a folder or one of the input's files."""
    if path.is_dir():
        raise ConversionError(f"{path}: is a folder; name the file to write")
    if any(path.exists() and os.path.samefile(path, f) for f in (*checkpoint.files, checkpoint.path)):
        raise ConversionError(f"{path}: the output is the input; choose another name with -o")
    return path


def default_output(source: Path, plan: Plan, folder: Path | None = None) -> Path:
    """Return the path of an output that nobody named: in `folder` or beside the model, by format."""
    return (folder or source.parent) / f"{model_stem(source)}-{_format_tag(plan)}.safetensors"


def asked_output(source: Path, settings: Settings, folder: Path | None = None) -> Path:
    """Return `default_output` as far as the settings tell it, for a model that cannot be planned."""
    form = chosen(settings.format, settings.scaling_mode)
    tag = form.make(
        Asked(settings.scaling_mode or "", block_size=settings.block_size, option=settings.format)
    ).tag()
    rotates = form.rotates and not form.always_rotated and settings.convrot is not False
    rotated = "_convrot" if rotates else ""
    return (folder or source.parent) / f"{model_stem(source)}-{tag}{rotated}.safetensors"


def model_stem(source: Path) -> str:
    """Return a model's name without the endings of its file or index."""
    name = source.name
    for ending in (".safetensors.index.json", ".safetensors"):
        name = name.removesuffix(ending)
    return name


def _format_tag(plan: Plan) -> str:
    """Name what most of the quantized weights are stored as: ``int8_row_convrot``."""
    weights: Counter[str] = Counter()
    for step in plan.quantized:
        assert step.format is not None
        rotated = step.format.rotation and not step.format.always_rotated
        weights[step.format.tag() + ("_convrot" if rotated else "")] += step.source.numel
    return weights.most_common(1)[0][0]
