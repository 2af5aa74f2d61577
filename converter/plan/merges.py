"""Which LoRA changes a step of the plan makes."""

from collections.abc import Collection, Iterator, Sequence

from ...files.checkpoint import TensorInfo
from ...files.dtypes import QUANTIZABLE
from ...formats.errors import ConversionError
from ..lora.merge import Merge, Merges
from .steps import Step


def merges_of(info: TensorInfo, kept: bool, scaled: Collection[str], merges: Merges) -> tuple[Merge, ...]:
    """Return the merges that change a tensor.

    kept: whether its values stay in the dtype that they are stored in. scaled: names of weights whose stored
    values mean nothing without a scale. ConversionError for a kept one of those, or one that holds no
    floats: its values cannot be changed and written as they were.
    """
    found = merges.by_tensor.get(info.name, ())
    if found and (info.dtype not in QUANTIZABLE or (kept and info.name in scaled)):
        raise ConversionError(
            f"{found[0].adapter.file}: cannot be merged into {info.name}, which is stored as "
            f"{info.dtype} and kept so; merge into the unquantized checkpoint"
        )
    return found


def left_out(steps: Sequence[Step], merges: Merges) -> Iterator[str]:
    """Yield a line where LoRAs change tensors that no step of the plan keeps."""
    reached = {s.name for s in steps if s.merges} | {
        s.companions["bias"].name for s in steps if s.bias_merges
    }
    lost = sorted(merges.by_tensor.keys() - reached)
    if lost:
        shown = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
        yield f"LoRA changes of {len(lost)} removed tensors are left out ({shown})"


def merged_note(merges: Collection[Merge]) -> str:
    """Say how many LoRA files change a tensor: ``merged 2 LoRAs``; "" for none."""
    count = len({m.number for m in merges})
    return f"merged {count} LoRA{'s' if count > 1 else ''}" if count else ""
