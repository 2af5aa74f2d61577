"""The plan's steps with their LoRA merges."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from ...files.dtypes import QUANTIZABLE
from ...formats.errors import ConversionError
from ..lora.merge import Merge, Merges
from .steps import Step


def attach_merges(steps: Iterable[Step], merges: Merges, scaled: Collection[str]) -> Iterator[Step]:
    """The steps, each with the merges that change its tensor.

    scaled: names of weights whose stored values mean nothing without a scale. ConversionError for a kept one
    of those, or one that holds no floats: its values cannot be changed and written as they were.
    """
    for step in steps:
        found = merges.by_tensor.get(step.name, ())
        if not found or step.action in ("drop", "write"):
            yield step
            continue
        if step.source.dtype not in QUANTIZABLE or (step.action == "keep" and step.name in scaled):
            raise ConversionError(
                f"{found[0].adapter.file}: cannot be merged into {step.name}, which is stored as "
                f"{step.source.dtype} and kept so; merge into the unquantized checkpoint"
            )
        reason = step.reason if step.action == "quantize" else f"{step.reason}, {merged_note(found)}"
        yield replace(step, reason=reason, merges=found)


def left_out(steps: Sequence[Step], merges: Merges) -> Iterator[str]:
    """A line where LoRAs change tensors that no step of the plan keeps."""
    reached = {s.name for s in steps if s.merges} | {s.companions["bias"] for s in steps if s.bias_merges}
    lost = sorted(merges.by_tensor.keys() - reached)
    if lost:
        shown = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
        yield f"LoRA changes of {len(lost)} removed tensors are left out ({shown})"


def merged_note(merges: Collection[Merge]) -> str:
    """``merged 2 LoRAs``: how many LoRA files change a tensor; "" for none."""
    count = len({m.number for m in merges})
    return f"merged {count} LoRA{'s' if count > 1 else ''}" if count else ""
