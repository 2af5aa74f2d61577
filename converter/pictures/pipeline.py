"""A diffusers pipeline: loaded, given other weights, and run with a fixed seed."""

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from ...formats.errors import ConversionError
from ...quant.runtime import load_quantized
from .report import Case

TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DENOISERS = ("transformer", "unet")
"""The components that a checkpoint replaces when none is named."""


@dataclass
class Outcome:
    """The pictures of a case, each [F, H, W, C] float32 in 0 to 1, seconds per step; or the error."""

    pictures: list[torch.Tensor]
    seconds_per_step: float | None = None
    error: str = ""


def load_pipeline(folder: str, dtype: str, device: str) -> Any:
    """Return the pipeline of a folder, or of a hub id that is in the cache; nothing is downloaded.

    ConversionError where diffusers is missing or cannot read it.
    """
    try:
        from diffusers import DiffusionPipeline
    except ImportError as e:
        raise ConversionError(
            f"pictures need diffusers ({e}): pip install 'convert-to-quant-toolkit[diffusers]'"
        ) from e
    try:
        pipe = DiffusionPipeline.from_pretrained(folder, dtype=TORCH[dtype], local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, ImportError, AttributeError, RuntimeError) as e:
        raise ConversionError(f"--pipeline {folder}: cannot be loaded: {_first_line(e)}") from e
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def find_component(pipe: Any, name: str | None) -> tuple[str, nn.Module]:
    """Return the component that a candidate replaces; None is the denoiser. ConversionError without one."""
    modules = {n: m for n, m in pipe.components.items() if isinstance(m, nn.Module)}
    found = name or next((n for n in DENOISERS if n in modules), None)
    if found is None or found not in modules:
        known = ", ".join(sorted(modules)) or "none"
        asked = f"no component {name!r}" if name else "neither a transformer nor a unet"
        raise ConversionError(f"the pipeline has {asked}; name one of its own with --component: {known}")
    return found, modules[found]


def replace_weights(module: nn.Module, candidate: str, dtype: str, device: str) -> None:
    """Fill a component with the weights of a checkpoint, in place; CheckpointError where they do not fit."""
    load_quantized(module, Path(candidate), device=device, dtype=TORCH[dtype])


def run_case(pipe: Any, case: Case, steps: int | None, guidance: float | None, device: str) -> Outcome:
    """Make the pictures of a case. What the pipeline raises becomes the outcome's error."""
    accepted = inspect.signature(pipe.__call__).parameters
    given: dict[str, Any] = {
        "prompt": list(case.prompts) if len(case.prompts) > 1 else case.prompts[0],
        "generator": [torch.Generator("cpu").manual_seed(case.seed + i) for i in range(len(case.prompts))],
        "output_type": "pt",
    }
    if len(case.prompts) == 1:
        given["generator"] = given["generator"][0]
    if case.size is not None:
        given["width"], given["height"] = case.size
    if steps is not None:
        given["num_inference_steps"] = steps
    if guidance is not None:
        given["guidance_scale"] = guidance
    if unknown := [name for name in given if name not in accepted]:
        raise ConversionError(f"{type(pipe).__name__} takes no {', '.join(unknown)}")
    clock = _Clock(device)
    if "callback_on_step_end" in accepted:
        given["callback_on_step_end"] = clock.step
    try:
        with torch.no_grad():
            made = pipe(**given)
        return Outcome(_pictures(made), clock.seconds_per_step())
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as e:
        return Outcome([], error=f"{type(e).__name__}: {_first_line(e)}")


class _Clock:
    """Notes when each step of the denoiser ends."""

    def __init__(self, device: str) -> None:
        self._wait: Callable[[], None] = (
            (lambda: torch.cuda.synchronize(device)) if device.startswith("cuda") else lambda: None
        )
        self._ends: list[float] = []

    def step(self, pipe: Any, index: int, at: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self._wait()
        self._ends.append(time.perf_counter())
        return tensors

    def seconds_per_step(self) -> float | None:
        """Return the median time between the ends of two steps; None for fewer than two."""
        ends = self._ends
        return median(b - a for a, b in pairwise(ends)) if len(ends) > 1 else None


def _pictures(made: Any) -> list[torch.Tensor]:
    """Return the pictures [F, H, W, C] of a pipeline's result; of videos all frames."""
    found = getattr(made, "images", None)
    if found is not None:
        return [p.unsqueeze(0) for p in _channels_last(found)]
    found = getattr(made, "frames", None)
    if found is None:
        raise ConversionError(
            f"the pipeline returns {type(made).__name__}, which has no images and no frames"
        )
    return list(_channels_last(found))


def _channels_last(found: Any) -> torch.Tensor:
    stacked = found if isinstance(found, torch.Tensor) else torch.stack(list(found))
    return stacked.float().cpu().movedim(-3, -1)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
