"""The Python face of the converter."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..formats.choose import DEFAULT
from .options.settings import Settings, keywords
from .options.translate import by_keyword, translated
from .options.values import nearest
from .progress import Silent

if TYPE_CHECKING:
    from .convert.batch import BatchReport
    from .convert.report import ConversionReport
    from .executor import Executor
    from .preview.dry_run import PlanReport


def convert(
    input_file: str,
    output_file: str | None = None,
    *,
    format: str = DEFAULT,
    executor: Executor | None = None,
    **options: Any,
) -> ConversionReport:
    """Convert a safetensors checkpoint to a quantized one.

    format: how the layers are stored, a value of ``--format``: int8, fp8, ... (docs/formats.md). Everything
    else is as for `convert_to_int8`, and so is what is returned and raised.

        report = convert("model.safetensors", format="fp8")
        print(report.summary())
    """
    from .convert.run import convert

    settings = _settings("convert", input_file, output_file, {"format": format, **options})
    return convert(settings, executor=executor)


def convert_to_int8(
    input_file: str, output_file: str | None = None, *, executor: Executor | None = None, **options: Any
) -> ConversionReport:
    """Convert a safetensors checkpoint to one with INT8 weights that stock ComfyUI loads.

    input_file: a ``.safetensors`` file, a ``*.safetensors.index.json`` or a folder of shards; as a text also
        a model on the hub (``org/model``) or a URL (docs/hub.md).
    output_file: the file to write; by default beside the input, named after the format.
    executor: a `convert_to_quant.ray.RayExecutor`, for the layers that take long (docs/ray.md).
    options: the command line's options as keywords (see `converter.options.settings.Settings`), among them
        comfy_quant, format, scaling_mode, block_size=128, convrot=True|False,
        convrot_group_size="auto"|int, layer_config="layers.json", verify=True, report_quality=False.

    Returns a ConversionReport: for each layer its format, SQNR and bytes. Raises ConversionError with a
    message for people when anything is wrong, TypeError for an unknown keyword (naming the nearest),
    ValueError for a value an option cannot have. After an interruption the same
    call resumes where it stopped.

        report = convert_to_int8("model.safetensors", comfy_quant=True)
        print(report.summary())
    """
    from .convert.run import convert

    return convert(_settings("convert_to_int8", input_file, output_file, options), executor=executor)


def plan_int8(input_file: str, output_file: str | None = None, **options: Any) -> PlanReport:
    """Say what `convert_to_int8` with the same arguments would do, from the header alone.

    Reads no weight and does not load torch. Returns a PlanReport: every tensor's fate and reason, sizes,
    and the estimated time and memory. Raises what the conversion would raise before it starts.

        print(plan_int8("model.safetensors").summary())
    """
    from .preview.dry_run import plan_conversion

    return plan_conversion(_settings("plan_int8", input_file, output_file, options))


def convert_many(
    inputs: Sequence[str],
    output_folder: str | None = None,
    *,
    format: str = DEFAULT,
    pattern: str | None = None,
    lora_map: str | None = None,
    executor: Executor | None = None,
    **options: Any,
) -> BatchReport:
    """Convert several models, going on after one that fails; to any format, as `convert` does one.

    Everything else is as for `convert_many_to_int8`, and so is what is returned and raised.

        report = convert_many(["models"], "fp8", pattern="*.safetensors", format="fp8")
        print(report.summary())
    """
    given = {"format": format, **options}
    return _many("convert_many", inputs, output_folder, pattern, lora_map, executor, given)


def convert_many_to_int8(
    inputs: Sequence[str],
    output_folder: str | None = None,
    *,
    pattern: str | None = None,
    lora_map: str | None = None,
    executor: Executor | None = None,
    **options: Any,
) -> BatchReport:
    """Convert several models, going on after one that fails.

    inputs: models as `convert_to_int8` takes them, or with `pattern` (a glob) the folders whose matching
        files are the models.
    output_folder: made when missing; by default each output stands beside its input.
    lora_map: a JSON file with the LoRAs of each model (see `converter.convert.lora_map`).
    executor: a `convert_to_quant.ray.RayExecutor`, for many models, or many layers of each, at once
        (docs/ray.md); by default one after the other, here.
    options: as for `convert_to_int8`.

    Returns a BatchReport; its `failed` are the models that did not come through, each with its error. Raises
    ConversionError when no model can be started: nothing matches, or two would have one output.

        report = convert_many_to_int8(["models"], "int8", pattern="*.safetensors")
        print(report.summary())
    """
    return _many("convert_many_to_int8", inputs, output_folder, pattern, lora_map, executor, options)


def _many(
    function: str,
    inputs: Sequence[str],
    output_folder: str | None,
    pattern: str | None,
    lora_map: str | None,
    executor: Executor | None,
    options: dict[str, Any],
) -> BatchReport:
    from .convert.batch import plan_batch, run_on
    from .convert.run import convert

    if not inputs:
        raise ValueError(f"{function}() needs at least one input")
    shared = _settings(function, str(inputs[0]), output_folder, options)
    batch = plan_batch([str(i) for i in inputs], shared, pattern, lora_map)
    one = convert if executor is None else partial(convert, executor=executor)
    return run_on(executor, batch, one, lambda line: None, Silent())


def quantize(input: str, output: str | None = None, **options: Any) -> ConversionReport:
    """Convert a checkpoint by the keywords of the other tool of this name (PyPI's ``convert_to_quant``).

    input, output: the files; by default the output stands beside the input, named after the format. options:
    that tool's keywords (``int8=True``, ``scaling_mode="row"``, ``wan=True``, ...) and those of
    `convert_to_int8`. Its optimizers' settings change nothing and are warned of.

    Returns a ConversionReport. Raises as `convert_to_int8` does, and ValueError for an option that has no
    meaning here, saying what takes its place.
    """
    from .convert.run import convert

    given, known = by_keyword(options)
    values, lines = translated(given, known)
    for line in lines:
        warnings.warn(line, stacklevel=2)
    return convert(_settings("quantize", input, output, values))


def _settings(function: str, input_file: Any, output_file: Any, options: dict[str, Any]) -> Settings:
    known = keywords()
    for name in options:
        if name not in known:
            hint = nearest(name, known)
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}; {hint}")
    return Settings(input_file=str(input_file), output_file=_text(output_file), **options)


def _text(path: Any) -> str | None:
    return None if path is None else str(path)
