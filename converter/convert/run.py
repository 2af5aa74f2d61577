"""A conversion from start to end: plan, read, quantize, write, check, name."""

import json
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from types import NoneType
from typing import Any

import torch

from ...files.checkpoint import Checkpoint, open_checkpoint
from ...files.copying import copy_tensor
from ...files.memory import return_freed_buffers, reused_buffers
from ...files.stamp import Stamps, identity, require_unchanged
from ...files.writer import OutputFile
from ...formats.errors import CheckpointError, ConversionError
from ...quant.calibration.held_back import hold_back
from ..budget.plan import make_plan
from ..executor import Executor
from ..fold.stats import folded_stats
from ..options.settings import Settings
from ..plan.error_lora import plan_error_lora
from ..plan.estimate import bytes_held, is_carried
from ..plan.inputs import all_inputs, job_metadata, other_inputs, stamps_of
from ..plan.merges import merged_note
from ..plan.output_path import output_path
from ..plan.steps import Plan, Step
from ..progress import Progress, Silent
from ..quantize.check import Inputs, Sample, check_layer, sample_rows
from ..quantize.layer import cast_weight, layer_options
from ..quantize.measure import with_folds
from ..quantize.source import read_bias, read_bytes_of, read_changed, read_weight
from ..stored.record import filled
from . import pipeline
from .error_lora import require_error_lora, write_error_lora
from .finite import NotFinite, not_finite
from .making import Made, Maker, maker_of
from .report import ConversionReport, KeptTensor, LayerReport
from .threads import one_spared


def convert(
    settings: Settings, progress: Progress | None = None, executor: Executor | None = None
) -> ConversionReport:
    """Convert a checkpoint as `settings` say; returns the report once the output has its name.

    executor: computes the layers that take long (LDLQ, learned rounding); by default this process does.

    ConversionError for anything wrong with the input, the settings, the disk or a layer, for inputs that
    change meanwhile, and for an output that exists unless `overwrite` is set. After an interruption the same
    call resumes where it stopped; after its end it says that the output is there already.
    """
    started = time.perf_counter()
    return_freed_buffers()
    stamps = stamps_of(other_inputs(settings))
    with open_checkpoint(settings.input_file) as checkpoint:
        stamps = {**stamps, **checkpoint.stamps}
        maker = maker_of(settings, executor)
        plan = maker.plan(make_plan(checkpoint, maker.settings))
        broken = tuple(not_finite(checkpoint, plan))
        if broken and settings.strict:
            more = f" (and {len(broken) - 1} more tensors)" if len(broken) > 1 else ""
            raise ConversionError(f"--strict: {broken[0]}{more}")
        output = output_path(checkpoint, plan, settings)
        plan = with_folds(plan, checkpoint, progress)
        asked = plan_error_lora(checkpoint, plan, output, settings)
        job = _job(stamps, plan, settings)
        lost, told = None, list(broken)
        file = OutputFile(
            output,
            plan.outputs,
            {**plan.metadata, **job_metadata(checkpoint, plan, settings)},
            job,
            inputs=all_inputs(checkpoint, settings),
            overwrite=settings.overwrite,
            telling=True,
        )
        try:
            if asked:
                require_error_lora(asked, file.already_there, settings)
            if file.already_there:
                layers = tuple(_layer_report(s, _LayerNote()) for s in plan.quantized)
            else:
                run = _Run(checkpoint, plan, file, settings, progress or Silent(), maker)
                layers = run.execute()
                told += run.lost
                file.amend(filled(file.metadata, plan.outputs, file.read))
                if asked:
                    silent = progress or Silent()
                    lost = write_error_lora(asked, checkpoint, file, job, settings, silent, plan.folds)
                _require_unchanged(stamps, file)
                file.finish()
        finally:
            file.close()
        seconds = time.perf_counter() - started
        report = _report(checkpoint, plan, settings, file, layers, seconds, tuple(told))
        return replace(report, error_lora=lost)


def _require_unchanged(stamps: Stamps, file: OutputFile) -> None:
    try:
        require_unchanged(stamps)
    except CheckpointError:
        file.discard()
        raise


def _job(stamps: Stamps, plan: Plan, settings: Settings) -> str:
    """Describe what must not change before a run is resumed: inputs, LoRAs, calibration, settings."""
    files = identity(stamps)
    steps = [(s.name, s.action, str(s.format), s.algorithm) for s in plan]
    loras = [(lora.path, lora.scale) for lora in plan.loras]
    asked = {k: v for k, v in asdict(settings).items() if k not in _NOT_THE_JOB}
    return json.dumps([files, steps, loras, asked], default=str)


_REUSED = 3
"""Fifths of the bytes in flight that are kept to be used again: what is counted from a layer's reading on and
is not there yet is the rest, and this is what keeps the peak of memory where it is without."""

_NOT_THE_JOB = ("input_file", "output_file", "json", "overwrite")


@dataclass(frozen=True)
class _Read:
    """A step's inputs: its weight, and the bias where that is corrected."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None


@dataclass(frozen=True)
class _Done:
    """A layer that is quantized, or is being: what waits for its values, rows and inputs to check them."""

    made: Made
    sample: Sample | None
    inputs: Inputs | None


class _Run:
    """The pipeline's three parts over one plan."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        file: OutputFile,
        settings: Settings,
        progress: Progress,
        maker: Maker,
    ):
        self._checkpoint, self._plan, self._file = checkpoint, plan, file
        self._settings, self._progress, self._maker = settings, progress, maker
        self._layers: dict[str, LayerReport] = {}
        self._lost: dict[str, str] = {}

    @property
    def lost(self) -> list[str]:
        """Lines on values that a cast made zero, or that are not finite, by tensor."""
        return [f"{name}: {text}" for name, text in self._lost.items()]

    def execute(self) -> tuple[LayerReport, ...]:
        """Run what is not done yet; returns the reports of all layers in plan order."""
        pending = [s for s in self._plan if s.outputs and not self._is_done(s)]
        total = sum(s.source.nbytes for s in self._plan)
        self._progress.start(total, total - sum(s.source.nbytes for s in pending))
        limit = self._maker.limit(self._plan)
        rounds = all(s.placement is None for s in pending)
        try:
            with reused_buffers(limit * _REUSED // 5), one_spared() if rounds else nullcontext():
                pipeline.run(
                    pending,
                    cost=bytes_held,
                    read=self._read,
                    work=self._work,
                    write=self._write,
                    limit=limit,
                    ahead=self._maker.ahead,
                    stopped=self._stopped,
                )
        finally:
            self._progress.stop()
        return tuple(self._layers[s.name] for s in self._plan.quantized)

    def _stopped(self) -> None:
        self._checkpoint.interrupt()
        self._maker.stop()

    def _is_done(self, step: Step) -> bool:
        """Tell whether an interrupted run did the step; take its layer's report over."""
        source = None
        if step.action == "keep" and not step.changed and not step.source.strided:
            source = self._checkpoint.places(step.source)
        entry = self._file.recorded(_key(step), [o.name for o in step.outputs], source)
        if entry is None:
            return False
        if step.action in ("cast", "keep") and isinstance(entry.note, str):
            self._lost[step.name] = entry.note
        if step.action != "quantize":
            return True
        note = _LayerNote.read(entry.note)
        if note is not None:
            self._layers[step.name] = _layer_report(step, note)
        return note is not None

    def _read(self, step: Step) -> _Read | None:
        if step.action in ("quantize", "cast"):
            folds = self._plan.folds
            return _Read(read_weight(self._checkpoint, step, folds), read_bias(self._checkpoint, step, folds))
        if step.changed:
            return _Read(read_changed(self._checkpoint, step, self._plan.folds))
        if is_carried(step):
            return _Read(read_bytes_of(self._checkpoint, step.source))
        return _Read(self._checkpoint.read_tensor(step.source)) if step.source.strided else None

    def _work(self, step: Step, read: _Read | None) -> Any:
        if read is None or step.action == "keep":
            return read and read.weight
        if step.action == "cast":
            cast = cast_weight(read.weight, step)
            if cast.lost and self._settings.strict:
                raise ConversionError(f"--strict: {step.name}: {cast.lost}")
            return cast
        assert step.format is not None
        # Whether anything is measured or not, so that the check changes no bit of the output.
        measured, folds = self._plan.calibration.stats(step.layer_name), self._plan.folds
        stats, tokens = hold_back(folded_stats(folds, step.layer_name, measured))
        options = layer_options(step, self._settings)
        made = self._maker.make(step, read.weight, read.bias, stats, options)
        sample = inputs = None
        if self._settings.verify:
            sample = sample_rows(read.weight, step.format.row_step, self._settings.report_quality)
            if tokens is not None:
                inputs = Inputs(tokens, read.bias)
                if folds is not None:
                    mean = folds.mean_output(step.layer_name)
                    factors = folds.row_factors(step.layer_name, len(read.weight))
                    inputs = replace(inputs, mean=mean, factors=factors)
        return _Done(made, sample, inputs)

    def _write(self, step: Step, result: Any) -> None:
        note: Any = None
        if step.action == "keep":
            note = self._write_kept(step, result)
        elif step.action == "write":
            self._file.write(step.outputs[0].name, step.data)
        elif step.action == "cast":
            self._file.write(step.outputs[0].name, _bytes(result.values))
            note = result.lost
            self._lost |= {step.name: note} if note else {}
        else:
            note = self._write_layer(step, result)
        self._file.mark(_key(step), note)
        self._progress.advance(step.layer_name if step.format else "", step.source.nbytes)

    def _write_kept(self, step: Step, read: torch.Tensor | None) -> str | None:
        """Write a kept tensor; return what `NotFinite` tells of one that nobody could look at before."""
        name, seen = step.outputs[0].name, NotFinite(step.source)
        if read is None:
            copy_tensor(self._checkpoint, step.source, self._file, name, seen.add)
        else:
            self._file.write(name, _bytes(read))
            if is_carried(step):
                seen.add(_bytes(read))
        if seen.told and self._settings.strict:
            raise ConversionError(f"--strict: {step.name}: {seen.told}")
        self._lost |= {step.name: seen.told} if seen.told else {}
        return seen.told or None

    def _write_layer(self, step: Step, done: _Done) -> dict:
        tensors, remark = done.made()
        for output in step.outputs:
            made = tensors.get(output.name)
            self._file.write(output.name, step.data if made is None else _bytes(made))
        checked = None
        if done.sample is not None:
            checked = check_layer(self._file, step, done.sample, done.inputs)
        if checked is not None and checked.zeroed and self._settings.strict:
            raise ConversionError(f"--strict: {step.layer_name}: {checked.zeroed}")
        note = _LayerNote(note=remark)
        if checked is not None:
            note = _LayerNote(checked.sqnr_db, checked.zeroed, remark, checked.output_db)
        report = _layer_report(step, note)
        self._layers[step.name] = report
        return asdict(note)


@dataclass(frozen=True)
class _LayerNote:
    """What the journal records of a layer: all of its report that the plan does not tell."""

    sqnr_db: float | None = None
    zeroed: str = ""
    note: str | None = None
    output_db: float | None = None

    @classmethod
    def read(cls, value: Any) -> "_LayerNote | None":
        """Return it from a journal; None for a record that is none."""
        if not isinstance(value, dict) or value.keys() != {f.name for f in fields(cls)}:
            return None
        note = cls(**value)
        known = {type(note.sqnr_db), type(note.output_db)} <= {float, NoneType}
        known = known and isinstance(note.zeroed, str)
        return note if known and isinstance(note.note, str | None) else None


def _layer_report(step: Step, note: _LayerNote) -> LayerReport:
    assert step.format is not None
    return LayerReport(
        step.layer_name,
        step.format.describe(),
        step.algorithm,
        step.shape,
        step.source.nbytes,
        step.output_bytes,
        note.sqnr_db,
        "; ".join(filter(None, (merged_note(step.merges), note.note))) or None,
        step.format.kind(),
        step.format.warn_db,
        note.zeroed,
        note.output_db,
    )


def _bytes(tensor: torch.Tensor) -> memoryview:
    """Return a contiguous tensor's memory, of any dtype."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _key(step: Step) -> str:
    """Name a step in the journal: by what it writes, since one source may have two steps."""
    return step.outputs[0].name


def _kept(step: Step) -> KeptTensor:
    return KeptTensor(step.name, step.reason, step.output_bytes, step.source.nbytes)


def _report(
    checkpoint: Checkpoint,
    plan: Plan,
    settings: Settings,
    file: OutputFile,
    layers: tuple[LayerReport, ...],
    seconds: float,
    lost: tuple[str, ...],
) -> ConversionReport:
    warnings = []
    for r in layers:
        least = settings.quality_threshold if settings.report_quality else r.warn_db
        poor = r.judged_db is not None and r.judged_db < least
        told = f"{r.judged_db:.1f} dB{r.judged_by} after {r.format}, below {least:g} dB" if poor else ""
        if told or r.zeroed:
            warnings.append(f"{r.name}: {'; '.join(filter(None, (told, r.zeroed)))}")
    return ConversionReport(
        input=str(checkpoint.path),
        output=str(file.path),
        layers=layers,
        kept=tuple(_kept(s) for s in plan if s.action in ("keep", "cast")),
        bytes_before=checkpoint.nbytes,
        bytes_after=file.size,
        seconds=seconds,
        notes=plan.notes,
        loras=plan.loras,
        warnings=(*lost, *warnings),
        already_there=file.already_there,
    )
