"""An edit from start to end: examine, plan, copy what stays, write what changes, name."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...files.checkpoint import Checkpoint, open_checkpoint
from ...files.copying import copy_tensor
from ...files.dtypes import torch_dtype
from ...files.remote.address import beside
from ...files.stamp import identity, require_unchanged
from ...files.target import require_target
from ...files.writer import OutputFile
from ...formats.errors import CheckpointError
from ..plan.output_path import model_stem
from ..plan.steps import Plan, Step
from ..progress import Progress, Silent
from ..stored.judge import Examined, Problem
from ..stored.layers import stored_file
from ..stored.record import filled
from .plan import Change, EditPlan, build_edit_plan
from .settings import EditSettings


@dataclass(frozen=True)
class EditReport:
    """What an edit did. `left`: problems it cannot put right; `warnings` are for people.

    output is None for a dry run. already_there: the output was there, with the same bytes.
    """

    input: str
    output: str | None
    changes: tuple[Change, ...]
    left: tuple[Problem, ...]
    warnings: tuple[str, ...]
    bytes_before: int
    bytes_after: int
    seconds: float
    already_there: bool = False

    def __str__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """Say in one line what was done to how much."""
        kinds = Counter(c.kind for c in self.changes)
        done = ", ".join(f"{kind} x {n}" for kind, n in kinds.items()) or "nothing to change"
        if self.output is None:
            return f"{self.input}: {done}; dry run, nothing written"
        if self.already_there:
            return f"{self.output}: already there, with the very bytes of this edit"
        copied = "" if self.changes else " (a copy)"
        return (
            f"{self.output}: {done}{copied}, {self.bytes_before / 2**20:,.1f} -> "
            f"{self.bytes_after / 2**20:,.1f} MiB in {self.seconds:.1f} s"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self)


def edit(settings: EditSettings, progress: Progress | None = None) -> EditReport:
    """Edit a quantized file as `settings` say, putting right what is wrong by the contract.

    The input is only read; kept tensors are copied byte for byte; the output appears when it is whole. After
    an interruption the same call resumes where it stopped. ConversionError for names that match nothing, an
    edit that would leave an unreadable layer, anything wrong with the files, and an output that exists with
    other bytes unless `overwrite` is set.
    """
    started = time.perf_counter()
    with open_checkpoint(settings.input_file) as checkpoint:
        decided = build_edit_plan(stored_file(checkpoint), settings)
        output = edited_path(checkpoint, settings)
        size, already_there = 0, False
        if not settings.dry_run:
            already_there = _write(checkpoint, decided, output, settings.overwrite, progress or Silent())
            size = output.stat().st_size
        return EditReport(
            input=str(checkpoint.path),
            output=None if settings.dry_run else str(output),
            changes=tuple(decided.changes),
            left=tuple(decided.left),
            warnings=tuple(decided.warnings),
            bytes_before=checkpoint.nbytes,
            bytes_after=size,
            seconds=time.perf_counter() - started,
            already_there=already_there,
        )


def edited_path(checkpoint: Checkpoint, settings: EditSettings) -> Path:
    """Return where the output goes: as named, or ``<input>-edited.safetensors``.

    ConversionError as `require_target`: for an input, a folder, a device, ...
    """
    default = beside(checkpoint.path) / f"{model_stem(checkpoint.path)}-edited.safetensors"
    output = Path(settings.output_file) if settings.output_file else default
    return require_target(output, checkpoint.local_files)


def _write(
    checkpoint: Checkpoint, decided: EditPlan, output: Path, overwrite: bool, progress: Progress
) -> bool:
    """Write the output; return whether it was there already."""
    plan = decided.plan
    job, inputs = _job(checkpoint, plan), checkpoint.local_files
    file = OutputFile(output, plan.outputs, plan.metadata, job, inputs=inputs, overwrite=overwrite)
    try:
        pending = [s for s in plan if s.outputs and not _is_done(checkpoint, s, file)]
        total = sum(s.output_bytes for s in plan)
        progress.start(total, total - sum(s.output_bytes for s in pending))
        try:
            for step in pending:
                if step.action == "dequantize":
                    _dequantize(checkpoint, step, decided.examined[step.layer_name], file)
                else:
                    _perform(checkpoint, step, file)
                file.mark(step.outputs[0].name, None)
                progress.advance(step.layer_name, step.output_bytes)
        finally:
            progress.stop()
        file.amend(filled(file.metadata, plan.outputs, file.read, set(_anew(plan))))
        try:
            require_unchanged(checkpoint.stamps)
        except CheckpointError:
            file.discard()
            raise
        file.finish()
        return file.already_there
    finally:
        file.close()


def _anew(plan: Plan) -> Iterator[str]:
    """Name the tensors that are not copied as they are."""
    for step in plan:
        if step.action != "keep" or any(o.dtype != step.source.dtype for o in step.outputs):
            yield from (o.name for o in step.outputs)


def _is_done(checkpoint: Checkpoint, step: Step, file: OutputFile) -> bool:
    source = checkpoint.places(step.source) if _is_copy(step) else None
    return file.recorded(step.outputs[0].name, [step.outputs[0].name], source) is not None


def _is_copy(step: Step) -> bool:
    """Tell a step that leaves its tensor as it lies in the source."""
    same = step.outputs[0].dtype == step.source.dtype and not step.source.strided
    return same and step.action not in ("write", "dequantize")


def _perform(checkpoint: Checkpoint, step: Step, file: OutputFile) -> None:
    """Write one step's tensor: bytes from the plan, a copy, or the same values in another dtype."""
    output = step.outputs[0]
    if step.action == "write":
        file.write(output.name, step.data)
    elif _is_copy(step):
        copy_tensor(checkpoint, step.source, file, output.name)
    else:
        import torch  # an edit that only copies does without

        values = checkpoint.read(step.name)
        values = values if output.dtype == step.source.dtype else values.to(torch.float32)
        file.write(output.name, values.reshape(-1).view(torch.uint8).numpy().data)


_PIECE = 1 << 20
"""Elements made float at once: few enough to stay in the cache, enough for a thread each."""


def _dequantize(checkpoint: Checkpoint, step: Step, examined: Examined, file: OutputFile) -> None:
    """Write a layer's float values, in pieces of rows."""
    import torch

    from ..verify.weights import Quantized

    output, layer = step.outputs[0], Quantized.of(checkpoint, examined)
    width = output.nbytes // layer.shape[0]
    for start, stop in layer.pieces(_PIECE):
        rows = layer.part(start, stop).floats().to(torch_dtype(output.dtype))
        file.write_part(output.name, start * width, rows.reshape(-1).view(torch.uint8).numpy().data)


def _job(checkpoint: Checkpoint, plan: Plan) -> str:
    """Describe what must not change before an interrupted edit is resumed."""
    files = identity(checkpoint.stamps)
    steps = [(s.name, s.action, s.data.hex(), [(o.name, o.dtype) for o in s.outputs]) for s in plan]
    return json.dumps(["edit", files, steps])
