"""What a LoRA reads from the inputs of each layer, for calibration."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ...files.checkpoint import Checkpoint, open_checkpoint
from ...formats.errors import ConversionError
from .delta import read_finite
from .merge import Merge, plan_merges


def lora_directions(
    paths: str | Path | Sequence[str | Path],
    shapes: Mapping[str, tuple[int, ...]],
    scale: float = 1.0,
    dampen: bool = True,
) -> dict[str, torch.Tensor]:
    """Return the input directions that LoRAs use, by layer: float32 [sum of ranks, K].

    paths: one LoRA file or several. shapes: the checkpoint's tensor names and shapes; names are matched as a
    merge matches them. scale, dampen: as for a merge.

    For a change B A, D = scale (B^T B)^(1/2) A: each direction with the strength with which it moves the
    output, so that D^T D = A^T B^T B A. LoHa, LoKr and whole differences have no down projection and are
    passed over. ConversionError as for a merge, and when no layer is left.
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
        raise ConversionError(
            f"{files[0]}: none of its layers has a down projection, so it tells no directions; "
            "only a LoRA of up and down matrices can be the calibration LoRA"
        )
    return directions


def _directions(merge: Merge, opened: dict[str, Checkpoint]) -> torch.Tensor:
    adapter = merge.adapter
    if adapter.file not in opened:
        opened[adapter.file] = open_checkpoint(adapter.file)
    tensors = read_finite(adapter, opened[adapter.file].read_tensor)
    factor = adapter.factor(float(tensors["alpha"]) if "alpha" in tensors else None)
    up, down = tensors["up"].flatten(1), tensors["down"].flatten(1)
    values, vectors = torch.linalg.eigh(up.T @ up)
    root = (vectors * values.clamp_min(0).sqrt()).T
    return (root @ down).mul_(factor * merge.scale)
