"""``--extract-lora``: what quantization lost of each layer, as a LoRA file of its own.

The error of a layer, its source less what a loader makes of the written tensors, is approximated by two
narrow matrices, up [N, r] and down [r, K] in bfloat16. They help where they are applied *beside* the
quantized weight (ComfyUI's "Load LoRA (Bypass)" nodes): added to the weight, which is then quantized anew,
they are lost in the rounding that they mend.
"""

from __future__ import annotations

import torch

from ...files.checkpoint import Checkpoint
from ...files.target import require_absent
from ...files.writer import OutputFile
from ...folding.changes import MADE_FOR
from ...folding.factors import Folds
from ...formats.errors import ConversionError
from ..lora.low_rank import low_rank
from ..options.settings import Settings
from ..plan.error_lora import ErrorLoraPlan, lora_outputs
from ..plan.steps import Step
from ..progress import Progress
from ..quantize.check import decibels, written_rows
from ..quantize.source import read_weight
from .report import Correction, ErrorLora

_ROWS = 1024


def require_error_lora(asked: ErrorLoraPlan, already_there: bool, settings: Settings) -> None:
    """Refuse, before there is work to lose, an error LoRA that would replace a file.

    already_there: the quantized file is; then its error LoRA has to be, for nothing is written.
    """
    if already_there and not asked.path.exists():
        raise ConversionError(
            f"{asked.path}: is missing, though the model is converted; --overwrite makes both anew"
        )
    if not already_there:
        require_absent(asked.path, settings.overwrite)


def write_error_lora(
    asked: ErrorLoraPlan,
    checkpoint: Checkpoint,
    written: OutputFile,
    job: str,
    settings: Settings,
    progress: Progress,
    folds: Folds | None = None,
) -> ErrorLora:
    """Write the LoRA, layer by layer, from the source and the quantized layers as they stand in `written`."""
    metadata = {"format": "pt", "convert_to_quant.error_of": written.path.name}
    if folds is not None:
        metadata[MADE_FOR] = written.path.name
    file = OutputFile(asked.path, asked.outputs, metadata, f"error lora {job}", overwrite=settings.overwrite)
    progress.start(sum(s.source.nbytes for s, _ in asked.layers), 0)
    try:
        found = [
            _corrected(asked.rank, step, name, checkpoint, written, file, progress, folds)
            for step, name in asked.layers
        ]
        file.finish()
    finally:
        progress.stop()
        file.close()
    return ErrorLora(str(asked.path), asked.rank, asked.path.stat().st_size, tuple(found))


def _corrected(
    rank: int,
    step: Step,
    name: str,
    checkpoint: Checkpoint,
    written: OutputFile,
    file: OutputFile,
    progress: Progress,
    folds: Folds | None,
) -> Correction:
    entry = file.recorded(name, [o.name for o in lora_outputs(step, name, rank)])
    done = entry.note if entry is not None else None
    if not (isinstance(done, list) and len(done) == 2 and all(isinstance(db, float) for db in done)):
        source = read_weight(checkpoint, step, folds).float()
        signal = float(source.double().square().sum())
        error = source
        for first, rows in written_rows(written, step, _ROWS):
            error[first : first + len(rows)] -= rows
        up, down = (t.to(torch.bfloat16).contiguous() for t in low_rank(error, rank))
        before = float(error.double().square().sum())
        error.addmm_(up.float(), down.float(), alpha=-1)
        after = float(error.double().square().sum())
        for planned, tensor in zip(lora_outputs(step, name, rank), (up, down), strict=True):
            file.write(planned.name, tensor.view(-1).view(torch.uint8).numpy().data)
        done = [decibels(signal, before), decibels(signal, after)]
        file.mark(name, done)
    progress.advance(step.layer_name, step.source.nbytes)
    return Correction(step.layer_name, *done)
