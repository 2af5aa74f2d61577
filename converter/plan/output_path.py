"""Where the output of a conversion goes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ...files.checkpoint import Checkpoint
from ...files.pickled import ENDINGS
from ...files.remote.address import Location, beside
from ...files.target import require_target
from ...formats import Asked
from ...formats.algorithms import ROUNDING
from ...formats.choose import chosen
from ..options.settings import Settings
from .inputs import all_inputs
from .named_format import require_honest_name
from .steps import Plan

_LONGEST = 60
"""Characters that the names of merged LoRAs may add to an output's."""


def output_path(checkpoint: Checkpoint, plan: Plan, settings: Settings) -> Path:
    """Return the output's path; its folder may be missing, for a batch makes it.

    ConversionError as `require_target`: for an input, a folder, a device, ...
    """
    path = Path(settings.output_file) if settings.output_file else default_output(checkpoint.path, plan)
    require_honest_name(path, plan)
    return require_target(path, all_inputs(checkpoint, settings), in_folder=False)


def default_output(source: Location, plan: Plan, folder: Path | None = None) -> Path:
    """Return the path of an output that nobody named: in `folder`, or beside the model if that is here.

    By merged LoRAs, format, algorithm and folds, so that what differs in them has another name, and whoever
    is given the file sees that LoRAs have to fit it: ``flux-style-int8_row_convrot_quip_folded.safetensors``.
    """
    merged = _merged([lora.path for lora in plan.loras])
    folded = "_folded" if plan.inputs else ""
    name = f"{model_stem(source)}{merged}-{_format_tag(plan)}{folded}.safetensors"
    return (folder or beside(source)) / name


def asked_output(source: Location, settings: Settings, folder: Path | None = None) -> Path:
    """Return `default_output` as far as the settings tell it, for a model that cannot be planned."""
    form = chosen(settings.format, settings.scaling_mode)
    tag = form.make(
        Asked(settings.scaling_mode or "", block_size=settings.block_size, option=settings.format)
    ).tag()
    rotates = form.rotates and not form.always_rotated and settings.convrot is not False
    rotated = "_convrot" if rotates else ""
    return (folder or beside(source)) / f"{model_stem(source)}-{tag}{rotated}.safetensors"


def model_stem(source: Location) -> str:
    """Return a model's name without the endings of its file or index."""
    name = source.name
    for ending in (".safetensors.index.json", ".safetensors", ".bin.index.json", *ENDINGS):
        name = name.removesuffix(ending)
    return name


def _merged(paths: list[str]) -> str:
    """Name the merged LoRAs: ``-style+detail``, or only how many when that is long."""
    names = "+".join(model_stem(Path(path)) for path in paths)
    return f"-{names if len(names) <= _LONGEST else f'{len(paths)}_loras'}" if paths else ""


def _format_tag(plan: Plan) -> str:
    """Name what most of the quantized weights are stored as, and by what algorithm: ``int8_row_ldlq``."""
    weights: Counter[str] = Counter()
    for step in plan.quantized:
        assert step.format is not None
        rotated = "_convrot" if step.format.rotation and not step.format.always_rotated else ""
        algorithm = f"_{step.algorithm}" if step.algorithm != ROUNDING else ""
        weights[step.format.tag() + rotated + algorithm] += step.source.numel
    return weights.most_common(1)[0][0]
