"""Which inputs a plan folds: those that presets know, calibration has seen, and the plan's tensors allow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ...files.checkpoint import Checkpoint
from ...files.dtypes import FLOAT8, QUANTIZABLE
from ...folding.coding import KEY
from ...folding.inputs import FoldedInput
from ...formats.errors import ConversionError
from ..fold.find import find_inputs
from ..layers.selection import Decision
from ..options.settings import Settings
from ..presets import Match
from .calibration import Calibration


def inputs_to_fold(
    checkpoint: Checkpoint,
    settings: Settings,
    matches: Sequence[Match],
    chosen: Mapping[str, Decision],
    scaled: frozenset[str],
    calibration: Calibration,
) -> tuple[FoldedInput, ...]:
    """Return the inputs to fold, in order of their blocks.

    chosen: what becomes of each tensor. scaled: weights whose stored values mean nothing without a scale.
    ConversionError for folds that are asked for without measured inputs.
    """
    if not calibration.measured:
        if settings.fold not in (None, "auto", "off"):
            raise ConversionError(
                f"--fold {settings.fold} needs measured inputs: give --calibration-data (record it with the "
                "ComfyUI node or convert_to_quant.calibrate)"
            )
        return ()
    if KEY in checkpoint.metadata:
        return ()

    def writable(name: str) -> bool:
        decision, dtype = chosen.get(name), checkpoint.tensors[name].dtype
        if decision is None or decision.action == "remove" or dtype not in QUANTIZABLE:
            return False
        stays = decision.action == "keep" or settings.target_size is not None
        return not stays or (dtype not in FLOAT8 and name not in scaled)

    shapes = checkpoint.shapes()
    asked = ((m, settings.folds(m.preset.fold_unasked)) for m in matches)
    found = (one for match, kinds in asked if kinds for one in find_inputs(shapes, [match], kinds))
    known = (one for one in found if any(calibration.has(c.layer, "samples") for c in one.columns))
    return tuple(one for one in known if all(writable(name) for name in one.tensors()))


def fold_notes(
    checkpoint: Checkpoint,
    settings: Settings,
    matches: Sequence[Match],
    calibration: Calibration,
    inputs: Sequence[FoldedInput],
) -> Iterator[str]:
    """Say what is folded, or why nothing is; where nobody asked, what asking would bring."""
    if settings.fold == "off":
        return
    if settings.fold is None and not inputs:
        known = any(m.preset.folds and not m.preset.fold_unasked for m in matches)
        if known and calibration.measured and KEY not in checkpoint.metadata:
            yield (
                "calibration could also even out the inputs of its layers (--fold auto: less noise in their "
                "outputs, not always in pictures; stock ComfyUI loads it, but LoRAs have to be made for it)"
            )
        return
    if not calibration.measured:
        yield "nothing is folded: --fold needs measured inputs, which --calibration-data gives"
    elif inputs:
        smooth, mean = (sum(getattr(one, kind) for one in inputs) for kind in ("smooth", "mean"))
        yield (
            f"{len(inputs)} inputs are folded into what produces them ({smooth} smoothed, {mean} less their "
            "mean): a LoRA for their layers does a third or more wrongly in stock ComfyUI; merge LoRAs now "
            "(--merge-lora), make each fit (ctq edit FILE --fold-lora LORA), or use our node pack, which does"
        )
    elif KEY in checkpoint.metadata:
        yield "nothing is folded: the file is folded already"
    elif not any(m.preset.folds for m in matches):
        names = " and ".join(m.preset.title for m in matches) or "this model"
        yield f"nothing is folded: of {names} it is not known what stands before each layer"
    else:
        yield (
            "nothing is folded: no layer behind a known norm, modulation or value projection has recorded "
            "inputs under these names"
        )
