"""``ctq edit --fold-lora``: a LoRA for a model, made one for a folded file of it.

A change U D of a weight whose input became (x - mu) / t and whose rows are divided by s is the change
(U / s) (D t) of the folded weight and U (D mu) / s of its bias: another LoRA of the same rank, which ComfyUI
adds as it does any, at any strength.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...files.checkpoint import Checkpoint, open_checkpoint
from ...files.header import TensorInfo
from ...files.save import save_tensors
from ...files.target import require_target
from ...folding.changes import MADE_FOR, LayerFold, layer_fold, stored_folds
from ...folding.factors import Folds
from ...formats.errors import ConversionError
from ..lora.delta import read_finite
from ..lora.merge import Merge, plan_merges
from ..plan.error_lora import lora_name
from ..plan.inputs import files_behind
from ..presets import Match, detect
from ..stored.faults import examine_file
from ..stored.layers import stored_file


@dataclass(frozen=True)
class FoldedLora:
    """What was written: how many folded layers the LoRA changes, and how many tensors are as they were."""

    output: Path
    layers: int
    copied: int

    def __str__(self) -> str:
        """Return one line for a person."""
        return f"{self.output}: folded in {self.layers} layers; {self.copied} tensors are as they were"


def fold_lora(lora: str, model: str, output: str | None = None, overwrite: bool = False) -> FoldedLora:
    """Write a LoRA for the folded file `model`: changes of folded layers by ComfyUI's names, all else copied.

    output: the file to write, beside the LoRA where it is not named. ConversionError for a file that is not
    folded, a LoRA that does not fit it, and changes that are no low-rank pair in a folded tensor.
    """
    target = Path(output or f"{lora.removesuffix('.safetensors')}-folded.safetensors")
    with open_checkpoint(model) as checkpoint, open_checkpoint(lora) as source:
        folds = stored_folds(checkpoint.metadata, checkpoint.tensors)
        if folds is None:
            raise ConversionError(f"{checkpoint.path}: is not folded: the LoRA fits it as it is")
        if MADE_FOR in source.metadata:
            raise ConversionError(
                f"{lora}: was made for {source.metadata[MADE_FOR]:.300} already: it fits as it is"
            )
        require_target(target, [*checkpoint.local_files, *files_behind(Path(lora))], "folded LoRA")
        shapes = _shapes(checkpoint)
        planned = plan_merges([lora], shapes).by_tensor
        merges = {name: found for name, found in planned.items() if name in folds.tensors}
        matches = detect(checkpoint.shapes(), checkpoint.metadata)
        used = {info.name for found in merges.values() for m in found for info in m.adapter.tensors.values()}
        tensors = {n: source.read(n, huge_pages=False) for n in source.tensors if n not in used}
        copied = len(tensors)
        for name, found in merges.items():
            tensors |= _module(name, found, shapes[name], folds, source, matches)
        metadata = {**source.metadata, MADE_FOR: checkpoint.path.name}
    save_tensors(target, tensors, metadata, overwrite)
    return FoldedLora(target, len(merges), copied)


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Return the shape of what each tensor stands for: a weight's whose rows are packed, too."""
    examined, _ = examine_file(stored_file(checkpoint))
    known = {f"{n}.weight": e.format.shape(e.layer.weight.shape) for n, e in examined.items() if e.format}
    return {**checkpoint.shapes(), **known}


def _module(
    name: str,
    merges: Sequence[Merge],
    shape: tuple[int, ...],
    folds: Folds,
    source: Checkpoint,
    matches: Sequence[Match],
) -> dict[str, torch.Tensor]:
    """Return the tensors of one layer's folded change."""
    layer = name.removesuffix(".weight")
    if any(m.adapter.kind != "lora" or m.adapter.bias or "dora" in m.adapter.tensors for m in merges):
        raise ConversionError(
            f"{merges[0].adapter.file}: {merges[0].adapter.module!r} is no plain low-rank change, and {name} "
            "is of a folded file; merge it into the float model instead (--merge-lora)"
        )
    ups, downs = zip(*(_pair(m, shape[0], source) for m in merges), strict=True)
    dtype = source.read_tensor(_up(merges[0])).dtype
    up, down = torch.cat(ups, 1), torch.cat(downs)
    fold = layer_fold(folds, layer, len(up), down.shape[1]) or LayerFold()
    up, down, bias = fold.pair(up, down)
    key = lora_name(layer, matches)
    made = {
        f"{key}.lora_up.weight": up.to(dtype),
        f"{key}.lora_down.weight": down.to(dtype),
        f"{key}.alpha": torch.tensor(float(len(down))),
    }
    return made if bias is None else {**made, f"{key}.diff_b": bias.to(dtype)}


def _up(merge: Merge) -> TensorInfo:
    return merge.adapter.tensors["up"]


def _pair(merge: Merge, rows: int, source: Checkpoint) -> tuple[torch.Tensor, torch.Tensor]:
    """Return up [N, r] and down [r, K] of a module, alpha in the first, rows that it is not for zero."""
    read = read_finite(merge.adapter, source.read_tensor)
    factor = merge.adapter.factor(float(read["alpha"]) if "alpha" in read else None)
    up, down = read["up"].flatten(1) * factor, read["down"].flatten(1)
    if not merge.segments:
        return up, down
    whole = torch.zeros(rows, up.shape[1])
    for to, start, count in merge.segments:
        whole[to : to + count] = up[start : start + count]
    return whole, down
