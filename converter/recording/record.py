"""From a model's name to a calibration file: load, run on prompts, keep what its linear layers saw."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import astuple, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from ...files.stamp import fingerprint
from ...files.target import already_exists, require_target
from ...formats.errors import ConversionError
from ...quant.calibration import Calls, Recorder, influences
from ...quant.calibration.file import job_of, save
from ...quant.calibration.record import TOKENS
from ...version import VERSION
from .pipeline import Pipeline
from .prompts import read_prompts, spread
from .runner import Runner, Runs
from .source import Source, find
from .text import TextModel

IMAGES = 16
"""Prompts that a pipeline runs where nothing else is said: at 20 steps or more the reservoirs are full long
before, and other prompts show other things."""


@dataclass(frozen=True)
class Request:
    """What to record, and into which file.

    prompts: a text file, None for the built-in list. count: of them to run, evenly over the list; None for
    all, of a pipeline for IMAGES. component: of a pipeline, None for its denoiser. tokens: sample size
    per layer. max_bytes: of all samples together. influence: calls of the model, drawn from all, on which
    each layer's influence on its output is measured in the end; 0: it is not.
    """

    model: str
    output: Path
    prompts: Path | None = None
    count: int | None = None
    component: str | None = None
    tokens: int = TOKENS
    max_bytes: int | None = None
    influence: int = 0
    overwrite: bool = False
    runs: Runs = field(default_factory=Runs)


def record(request: Request, progress: Callable[[str, int, int], None] | None = None) -> str:
    """Write the calibration; returns what was done, in lines.

    progress: called as ``progress(what, done, total)``, what: "prompt" or "influence of layer".

    Samples are drawn uniformly over all tokens of all prompts and steps. ConversionError for whatever cannot
    be read, run or written, and for a file that is there, unless it is the result of the same call (which is
    then left) or `overwrite` is set.
    """
    source = find(request.model)
    if request.component and source.kind != "pipeline":
        raise ConversionError(f"--component {request.component}: {source.folder} is one model, no pipeline")
    every = read_prompts(request.prompts)
    inputs = [*source.files(), *([request.prompts] if request.prompts else [])]
    require_target(request.output, inputs)
    prompts = spread(every, request.count or (IMAGES if source.kind == "pipeline" else None))
    job = _job(request, source, prompts)
    if request.output.exists() and not request.overwrite:
        if job_of(request.output) != job:
            raise already_exists(request.output)
        return f"{request.output}: already there, made before from the same files with the same options"
    runner = _open(source, request)
    calls = Calls(runner.called, request.influence, request.runs.seed)
    with _recorder(runner, request) as recorder, calls, torch.no_grad():
        for number, prompt in enumerate(prompts):
            runner.run(prompt, number)
            if progress is not None:
                progress("prompt", number + 1, len(prompts))
    stats = recorder.stats()
    if not stats:
        raise ConversionError(f"{runner.title}: no linear layer of it has run; nothing is written")
    influence = _influence(runner, calls, request, progress)
    save(request.output, stats, recorder.shared(), False, job, request.overwrite, influence)
    return _summary(request, runner, recorder, len(prompts), len(every), len(influence))


def _influence(
    runner: Runner, calls: Calls, request: Request, progress: Callable[[str, int, int], None] | None
) -> dict[str, float]:
    told = partial(progress, "influence of layer") if progress is not None else None
    try:
        return influences(runner.model, calls, request.runs.seed, progress=told)
    except ValueError as e:
        raise ConversionError(f"{runner.title}: --influence: {e}") from e


def _open(source: Source, request: Request) -> Runner:
    if source.kind == "pipeline":
        return Pipeline(source.folder, request.component, request.runs)
    asked = {"--steps": request.runs.steps, "--size": request.runs.sizes, "--frames": request.runs.frames}
    for flag, value in asked.items():
        if value:
            raise ConversionError(f"{flag} means nothing to {source.architecture}; leave it out")
    return TextModel(source, request.runs)


def _recorder(runner: Runner, request: Request) -> Recorder:
    try:
        return Recorder(runner.model, request.tokens, request.runs.seed, max_bytes=request.max_bytes)
    except ValueError as e:
        raise ConversionError(f"{runner.title}: {e}") from e


def _job(request: Request, source: Source, prompts: list[str]) -> str:
    """Tell a recording from any other by all that goes into it, and the version."""
    prints = [[str(p.relative_to(source.folder)), fingerprint(p)] for p in source.files()]
    asked = replace(request, model="", output=Path(), prompts=None, overwrite=False)
    text = json.dumps([VERSION, prints, prompts, astuple(asked)], default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _summary(
    request: Request, runner: Runner, recorder: Recorder, run: int, there: int, influence: int
) -> str:
    records = recorder.records.values()
    most = max(r.seen for r in records)
    kept = max(r.filled for r in records)
    line = (
        f"{request.output}: {len(records)} inputs of {len(recorder.modules)} linear layers of "
        f"{runner.title}, up to {kept} of {most:,} tokens each, from {run} of {there} prompts"
    )
    if influence:
        line += f"\nthe influence of {influence} layers on its output, for --target-size"
    silent = len(recorder.modules) - len(recorder.owner)
    if silent:
        line += f"\n{silent} linear layers did not run and have no record"
    dropped = sum(r.dropped for r in records)
    if dropped:
        line += (
            f"\n{dropped:,} tokens held NaN or Inf and were left out; does the model overflow in this dtype?"
        )
    if recorder.failed:
        name, why = next(iter(recorder.failed.items()))
        line += f"\nrecording of {len(recorder.failed)} layers stopped ({name}: {why})"
    return line
