"""What a LoRA reads from the inputs of each layer, for calibration."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..checkpoint import Checkpoint, open_checkpoint
from ..errors import ConversionError
from .delta import read_finite
from .merge import Merge, plan_merges


def lora_directions(
    paths: str | Path | Sequence[str | Path],
    shapes: Mapping[str, tuple[int, ...]],
    scale: float = 1.0,
    dampen: bool = True,
) -> dict[str, torch.Tensor]:
    """The input directions that LoRAs use, by layer: float32 [sum of ranks, K].

    paths: one LoRA file or several. shapes: the checkpoint's tensor names and shapes; names are matched as a
    merge matches them. scale, dampen: as for a merge. A direction is a row of the down projection times the
    norm of its column of the up projection and the LoRA's scale: D^T D is the metric in which the LoRA's own
    output is measured, as far as the columns of the up projection do not overlap. LoHa, LoKr and whole
    differences have no down projection and are passed over. ConversionError as for a merge, and when
    no layer is left.
    """
    files = [paths] if isinstance(paths, str | Path) else list(paths)
    merges = plan_merges([str(f) for f in files], shapes, scale, dampen).by_tensor
    directions = {}
    opened: dict[str, Checkpoint] = {}
    try:
        for name, found in merges.items():
            rows = [_directions(merge, opened) for merge in found if merge.adapter.kind == "lora"]
            if rows:
                directions[name.removesuffix(".weight")] = torch.cat(rows)
    finally:
        for checkpoint in opened.values():
            checkpoint.close()
    if not directions:
        raise ConversionError(f"{files[0]}: none of its layers has a down projection: no directions")
    return directions


def _directions(merge: Merge, opened: dict[str, Checkpoint]) -> torch.Tensor:
    adapter = merge.adapter
    if adapter.file not in opened:
        opened[adapter.file] = open_checkpoint(adapter.file)
    tensors = read_finite(adapter, opened[adapter.file].read_tensor)
    factor = adapter.factor(float(tensors["alpha"]) if "alpha" in tensors else None)
    strength = tensors["up"].flatten(1).norm(dim=0) * abs(factor * merge.scale)
    return tensors["down"].flatten(1) * strength.view(-1, 1)
