"""What ``--extract-lora`` will write: which layers' errors, under which names, of which rank. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...files.checkpoint import Checkpoint
from ...files.header import OutputTensor
from ...files.target import require_target
from ...formats.errors import ConversionError
from ...names.prefixes import DIFFUSION_MODEL, prefix_of
from ..layers.config import compile_pattern
from ..layers.rules import nearest_layer
from ..layers.selection import names_vocabulary
from ..options.settings import Settings
from ..presets import Match
from .build import recognise
from .inputs import all_inputs
from .steps import Plan, Step


@dataclass(frozen=True)
class ErrorLoraPlan:
    """Where the LoRA goes, of which rank, and the layers that are in it, each with its name there."""

    path: Path
    rank: int
    layers: Sequence[tuple[Step, str]]

    @property
    def outputs(self) -> list[OutputTensor]:
        """The tensors of the file."""
        return [o for step, name in self.layers for o in lora_outputs(step, name, self.rank)]

    @property
    def note(self) -> str:
        """A line for a person who has not run it yet."""
        size = sum(o.nbytes for o in self.outputs) / 2**20
        return (
            f"the error of {len(self.layers)} layers goes into {self.path}: rank {self.rank}, {size:,.1f} MiB"
        )


def _may_have_one(step: Step) -> bool:
    """Tell a Linear: no program applies a LoRA beside a bank of experts or a table of embeddings."""
    return step.format is not None and not step.format.experts and not names_vocabulary(step.layer_name)


def plan_error_lora(
    checkpoint: Checkpoint, plan: Plan, output: Path, settings: Settings
) -> ErrorLoraPlan | None:
    """Decide on the error LoRA of a conversion; None where none is asked for.

    ConversionError for a ``--lora-target`` that matches no quantized layer, and for options of it without
    ``--extract-lora``.
    """
    if settings.extract_lora is None:
        if settings.lora_target or settings.lora_output:
            flag = "--lora-target" if settings.lora_target else "--lora-output"
            raise ConversionError(f"{flag} needs --extract-lora")
        return None
    steps, target = [s for s in plan.quantized if _may_have_one(s)], settings.lora_target
    if target is not None:
        pattern = compile_pattern(target, f"--lora-target {target!r}")
        steps = [s for s in steps if pattern.search(s.layer_name)]
        if not steps:
            near = nearest_layer(target, [s.layer_name for s in plan.quantized])
            raise ConversionError(
                f"--lora-target {target!r} matches no quantized layer; the nearest is {near!r}"
            )
    default = output.with_name(f"{output.stem}-error-lora-r{settings.extract_lora}.safetensors")
    path = Path(settings.lora_output) if settings.lora_output else default
    require_target(path, all_inputs(checkpoint, settings), "error LoRA", in_folder=False)
    if path == output:
        raise ConversionError(f"--lora-output {path}: is the output itself; name another file")
    matches = recognise(checkpoint, settings)
    return ErrorLoraPlan(
        path,
        settings.extract_lora,
        [(step, lora_name(step.layer_name, matches)) for step in steps],
    )


def lora_name(layer: str, matches: Sequence[Match]) -> str:
    """Return what ComfyUI's LoRA loader calls a layer of a checkpoint: by its part, then its own name."""
    if layer.startswith("text_encoders."):
        return layer
    longest_first = sorted(matches, key=lambda m: -len(m.prefix))
    found = next((m for m in longest_first if layer.startswith(m.prefix)), None)
    if found is not None and found.preset.kind == "text encoder":
        return f"text_encoders.transformer.{layer}"
    return f"diffusion_model.{layer[len(prefix_of(layer, DIFFUSION_MODEL)) :]}"


def lora_outputs(step: Step, name: str, rank: int) -> Iterator[OutputTensor]:
    """Yield the tensors of a layer in the LoRA file: up [N, r], then down [r, K]."""
    n, k = step.shape
    r = min(rank, n, k)
    yield OutputTensor(f"{name}.lora_up.weight", "BF16", (n, r))
    yield OutputTensor(f"{name}.lora_down.weight", "BF16", (r, k))
