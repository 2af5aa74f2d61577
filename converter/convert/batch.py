"""Several models in one run: which they are, where they go, the LoRAs of each, and what became of them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...files.checkpoint import open_checkpoint
from ...files.remote.address import Location, located
from ...files.report import save_json
from ...formats.errors import ConversionError
from ..executor import Executor
from ..failures import in_words
from ..options.settings import Settings
from ..options.values import nearest
from ..plan.build import build_plan
from ..plan.estimate import PROCESS_BYTES, estimate
from ..plan.output_path import asked_output, default_output
from ..progress import Progress
from .lora_map import LoraMap, read_lora_map

_SHARD = re.compile(r"^(.+)-\d{5}-of-\d{5}\.safetensors$")


@dataclass(frozen=True)
class Outcome:
    """One model of a batch: its report's summary, or the error that ended it."""

    input: str
    output: str
    seconds: float
    error: str = ""
    summary: str = ""
    report: Any = None


@dataclass(frozen=True)
class BatchReport:
    """All models of a batch, in order, and what was left out and why."""

    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> list[Outcome]:
        """The models that did not come through."""
        return [o for o in self.outcomes if o.error]

    def __str__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """Say in one line how many of how many models were converted."""
        done = len(self.outcomes) - len(self.failed)
        return f"{done} of {len(self.outcomes)} models done, {len(self.failed)} failed"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        models = [
            {**asdict(replace(o, report=None)), "report": o.report.to_dict() if o.report else None}
            for o in self.outcomes
        ]
        return {"summary": self.summary(), "notes": list(self.notes), "models": models}

    def save_json(self, path: str | Path) -> None:
        """Write `to_dict` as JSON; over an older report, but over no other file (ConversionError)."""
        save_json(path, self.to_dict())


@dataclass(frozen=True)
class Foreseen:
    """What a model will take. nbytes: of its tensors; 0 of one that cannot be planned.

    memory: bytes, where a CPU does it. slow: whether layers are more than rounded to nearest.
    """

    nbytes: int = 0
    memory: int = PROCESS_BYTES
    slow: bool = False


@dataclass(frozen=True)
class Batch:
    """The conversions of a batch, one Settings per model, and lines worth telling a person.

    foreseen: what is known of each from its plan.
    """

    jobs: tuple[Settings, ...]
    notes: tuple[str, ...] = ()
    foreseen: tuple[Foreseen, ...] = ()


def plan_batch(
    inputs: Sequence[str],
    settings: Settings,
    pattern: str | None = None,
    lora_map: str | None = None,
    make_folder: bool = True,
) -> Batch:
    """Plan one conversion per model; all options but files and LoRAs are the same for all.

    inputs: models as `open_checkpoint` takes them; with `pattern`, folders whose matching files are the
    models (shards count once, by their index). settings: `output_file`, if any, is the folder for all
    outputs; `make_folder` makes it when it is missing. A file that is the output of another of the batch is
    left out, so that a batch can be run again over its own results.

    ConversionError when no file matches, two models would get one output, or the LoRA map does not fit.
    """
    models = _matching(inputs, pattern) if pattern else [located(i) for i in inputs]
    folder = Path(settings.output_file) if settings.output_file else None
    if folder is not None and (folder.is_file() or folder.suffix == ".safetensors"):
        raise ConversionError(f"-o {folder}: with several models -o names a folder for the outputs")
    if settings.lora_output:
        raise ConversionError(
            "--lora-output names one file; leave it out: each LoRA then stands by its output"
        )
    outputs = {model: _planned(model, settings, folder) for model in dict.fromkeys(models)}
    results = {output.resolve() for output, _ in outputs.values()}
    own = [model for model in outputs if isinstance(model, Path) and model.resolve() in results]
    jobs = {model: output for model, (output, _) in outputs.items() if model not in own}
    _require_distinct(jobs)
    loras = read_lora_map(lora_map) if lora_map else LoraMap()
    loras.require_use([model.name for model in jobs])
    if folder is not None and make_folder:
        folder.mkdir(parents=True, exist_ok=True)
    return Batch(
        tuple(
            replace(settings, input_file=_named(model), output_file=str(output), **loras.options(model.name))
            for model, output in jobs.items()
        ),
        tuple(f"{model}: left out: it is this batch's own output" for model in own),
        tuple(outputs[model][1] for model in jobs),
    )


def _named(model: Location) -> str:
    return str(model) if isinstance(model, Path) else model.given or model.address


def _planned(model: Location, settings: Settings, folder: Path | None) -> tuple[Path, Foreseen]:
    """Name a model's output. One that cannot be planned fails when its turn comes, under a plain name."""
    try:
        with open_checkpoint(model) as checkpoint:
            plan = build_plan(checkpoint, replace(settings, device="cpu"))
            slow = any(s.placement is not None for s in plan.quantized)
            foreseen = Foreseen(checkpoint.nbytes, estimate(plan, settings).peak_bytes, slow)
            return default_output(model, plan, folder), foreseen
    except ConversionError:
        return asked_output(model, settings, folder), Foreseen()


def run_batch(batch: Batch, convert: Callable[[Settings], Any], tell: Callable[[str], None]) -> BatchReport:
    """Convert one model after the other, going on after one that fails.

    convert: returns a report with `summary` and `to_dict`. tell: gets a line before and after each model.
    Only an interruption (Ctrl-C) ends the batch early.
    """
    outcomes = []
    for number, job in enumerate(batch.jobs, 1):
        tell(f"[{number}/{len(batch.jobs)}] {located(job.input_file)}")
        outcomes.append(outcome_of(job, convert))
        tell(f"error: {outcomes[-1].error}" if outcomes[-1].error else outcomes[-1].summary)
    return BatchReport(tuple(outcomes), batch.notes)


def run_on(
    executor: Executor | None,
    batch: Batch,
    convert: Callable[[Settings], Any],
    tell: Callable[[str], None],
    progress: Progress,
    show: Callable[[Settings, Any], None] = lambda job, report: None,
) -> BatchReport:
    """Convert all models: with `run_batch` here, or with `spread.run_spread` where an executor takes models.

    progress, show: for the latter; `convert` brings its own.
    """
    if executor is not None:
        from .spread import goes_by_model, run_spread

        if goes_by_model(batch, executor):
            return run_spread(batch, executor, tell, progress, show)
    return run_batch(batch, convert, tell)


def outcome_of(job: Settings, convert: Callable[[Settings], Any]) -> Outcome:
    """Convert a model; return its report, or what went wrong, in words."""
    started = time.perf_counter()
    error, report = "", None
    try:
        report = convert(job)
    except Exception as e:  # a fault in one model must not cost the night's other conversions
        error = in_words(e)
    seconds = time.perf_counter() - started
    summary = report.summary() if report is not None else ""
    return Outcome(str(located(job.input_file)), job.output_file or "", seconds, error, summary, report)


def _matching(folders: Sequence[str], pattern: str) -> list[Location]:
    """List the models in folders: files that match, indices for their shards."""
    found: dict[Location, None] = {}
    for name in folders:
        folder = Path(name)
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise ConversionError(f"--pattern is for folders; {folder} {what}")
        files = [path for path in sorted(folder.glob(pattern)) if path.is_file()]
        if not files:
            raise ConversionError(
                f"{folder}: no file matches --pattern {pattern!r}; {_offer(folder, pattern)}"
            )
        found |= dict.fromkeys(_model_of(path) for path in files)
    return list(found)


def _offer(folder: Path, pattern: str) -> str:
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    return nearest(pattern, names[:200]) if names else "it holds no files"


def _model_of(path: Path) -> Path:
    """Return the file itself, or for a shard the index of its model."""
    shard = _SHARD.match(path.name)
    if shard is None:
        return path
    index = path.with_name(f"{shard.group(1)}.safetensors.index.json")
    if not index.exists():
        raise ConversionError(
            f"{path}: is one shard of a model without {index.name}; "
            f"name the shards' folder with -i, without --pattern"
        )
    return index


def _require_distinct(jobs: dict[Location, Path]) -> None:
    taken: dict[Path, Location] = {}
    for model, output in jobs.items():
        if output in taken:
            raise ConversionError(
                f"{model} and {taken[output]} would both be {output}; convert them into two folders"
            )
        taken[output] = model
