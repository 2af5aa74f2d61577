"""The plan of a conversion, shown before a weight is read."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...files.checkpoint import open_checkpoint
from ...files.header import build_header
from ...files.remote.address import Location, beside
from ...files.report import save_json
from ...files.target import require_target
from ...formats.errors import ConversionError
from ..budget.plan import make_plan
from ..layers.config import write_layer_config
from ..options.settings import Settings
from ..plan.devices import describe_placement
from ..plan.error_lora import plan_error_lora
from ..plan.estimate import estimate
from ..plan.inputs import all_inputs, job_metadata
from ..plan.mix import Mix
from ..plan.output_path import model_stem, output_path
from ..plan.steps import Step, kinds
from .template import layer_steps, layer_template


@dataclass(frozen=True)
class PlannedTensor:
    """What will happen to one tensor.

    layer: whether it could be quantized at all. action: quantize, cast, keep, write or drop. stored: the
    format or dtype in the output ("" for a dropped one). rotation: ConvRot group, 0 for none. algorithm,
    placement and kind (the format's name in sentences): of quantized layers, else "".
    """

    name: str
    layer: bool
    shape: tuple[int, ...]
    action: str
    stored: str
    rotation: int
    algorithm: str
    placement: str
    bytes_in: int
    bytes_out: int
    reason: str
    kind: str = ""


@dataclass(frozen=True)
class PlanReport:
    """A plan for people and programs.

    seconds: estimated, None where an algorithm's speed is not known; peak_bytes: estimated memory of the
    whole process. mix: how formats were chosen for a target size, None without one.
    """

    input: str
    output: str
    tensors: tuple[PlannedTensor, ...]
    notes: tuple[str, ...]
    bytes_before: int
    bytes_after: int
    seconds: float | None
    peak_bytes: int
    mix: Mix | None = None

    @property
    def layers(self) -> list[PlannedTensor]:
        """The tensors that could be quantized, whether they are or not."""
        return [t for t in self.tensors if t.layer]

    def counts(self) -> dict[str, int]:
        """Count layers by what happens to them: quantize, cast, keep."""
        return dict(Counter(t.action for t in self.layers))

    def __str__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """Say in one line what would become of how much."""
        counts = self.counts()
        cast = f"{counts['cast']} to float16, " if "cast" in counts else ""
        return (
            f"{self.input}: {counts.get('quantize', 0)} layers to {kinds(self.layers)}, {cast}"
            f"{counts.get('keep', 0)} layers kept, {self.bytes_before / 2**20:,.1f} -> "
            f"{self.bytes_after / 2**20:,.1f} MiB in {self.output}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON values."""
        return json.loads(json.dumps(asdict(self)))

    def save_json(self, path: str | Path) -> None:
        """Write `to_dict` as JSON; over an older report, but over no other file (ConversionError)."""
        save_json(path, self.to_dict())


def plan_conversion(settings: Settings) -> PlanReport:
    """Plan a conversion from headers alone. Raises what `convert` would raise before its first byte."""
    with open_checkpoint(settings.input_file) as checkpoint:
        plan = make_plan(checkpoint, settings)
        output = output_path(checkpoint, plan, settings)
        lost = plan_error_lora(checkpoint, plan, output, settings)
        expected, job = estimate(plan, settings), job_metadata(checkpoint, plan, settings)
        layers = {id(step) for step in layer_steps(plan)}
        return PlanReport(
            input=str(checkpoint.path),
            output=str(output),
            tensors=tuple(_planned(step, step.format is not None or id(step) in layers) for step in plan),
            notes=plan.notes + ((lost.note,) if lost else ()),
            bytes_before=checkpoint.nbytes,
            bytes_after=build_header(plan.outputs, {**plan.metadata, **job})[2],
            seconds=expected.seconds,
            peak_bytes=expected.peak_bytes,
            mix=plan.mix,
        )


def create_template(settings: Settings) -> tuple[Path | None, str]:
    """Return where a layer configuration is to be written (None: stdout), and its text: the plan's.

    ``-o -`` is stdout; without -o it is ``<model>.layers.json`` beside the model. ConversionError
    for -o naming a checkpoint and, unless `overwrite` is set, for a file that is there: people edit it.
    """
    with open_checkpoint(settings.input_file) as checkpoint:
        text = write_layer_config(layer_template(make_plan(checkpoint, settings), settings))
        path = _template_path(checkpoint.path, settings.output_file)
        if path is not None:
            require_target(path, all_inputs(checkpoint, settings), "layer configuration")
            if path.exists() and not settings.overwrite:
                raise ConversionError(
                    f"{path}: exists, perhaps with your edits; name another file with -o, or replace it with "
                    f"--overwrite"
                )
        return path, text


def _template_path(source: Location, output: str | None) -> Path | None:
    if output == "-":
        return None
    if output is None:
        return beside(source) / f"{model_stem(source)}.layers.json"
    if output.endswith(".safetensors"):
        raise ConversionError(
            f"-o {output}: a layer configuration is JSON, not a checkpoint; use -o layers.json"
        )
    return Path(output)


def _planned(step: Step, layer: bool) -> PlannedTensor:
    return PlannedTensor(
        name=step.layer_name if layer else step.outputs[0].name if step.outputs else step.name,
        layer=layer,
        shape=step.source.shape,
        action=step.action,
        stored=step.format.describe() if step.format else step.outputs[0].dtype if step.outputs else "",
        rotation=step.format.rotation if step.format else 0,
        algorithm=step.algorithm,
        placement=describe_placement(step) if step.format else "",
        bytes_in=0 if step.action == "write" else step.source.nbytes,
        bytes_out=step.output_bytes,
        reason=step.reason,
        kind=step.format.kind() if step.format else "",
    )
