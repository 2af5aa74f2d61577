"""Weights as the algorithms take them: read from the checkpoint, FP8 dequantized, LoRAs merged, folded."""

import torch

from ...files.checkpoint import Checkpoint, TensorInfo
from ...files.dtypes import FLOAT8, torch_dtype
from ...files.header import OutputTensor
from ...files.memory import empty
from ...folding.factors import Folds
from ...formats.errors import ConversionError
from ..lora.delta import merge_into
from ..lora.merge import Merge
from ..plan.steps import Step

_PART = 1 << 17
"""Elements converted at once: they stay in the cache between reading and converting, in memory that the
allocator keeps."""


def read_weight(checkpoint: Checkpoint, step: Step, folds: Folds | None = None) -> torch.Tensor:
    """Read the float weight of a step: float32, float16 or bfloat16, of a layer to quantize as its `shape`.

    FP8 is dequantized to bfloat16 where it has no scale (exact), else to float32; float64 to float32. The
    step's LoRAs are merged into it, then it is folded; it is float32 after either (a folded vector float64).
    folds: of the plan; None leaves it unfolded.
    """
    weight = _read_whole(checkpoint, step, folds)
    return weight.view(step.shape) if step.action == "quantize" else weight


def _read_whole(checkpoint: Checkpoint, step: Step, folds: Folds | None) -> torch.Tensor:
    if step.merges or (step.folded and folds is not None):
        merged = merge_into(_read_float32(checkpoint, step), step.merges, checkpoint.read_tensor)
        return merged if folds is None else folds.apply(step.name, merged)
    weight = checkpoint.read_tensor(step.source)
    if step.source.dtype in FLOAT8:
        scale = step.companions.get("scale")
        if scale is None:
            return weight.to(torch.bfloat16)
        weight = weight.float()
        weight.view(-1, weight.shape[-1]).mul_(_scale(checkpoint, scale))
        return weight
    return weight.float() if weight.dtype == torch.float64 else weight


def read_changed(checkpoint: Checkpoint, step: Step, folds: Folds | None) -> torch.Tensor:
    """Read a kept tensor, merged and folded, in its output's dtype. ConversionError if it overflows."""
    return _narrowed(read_weight(checkpoint, step, folds), step.outputs[0], step.merges)


def read_bias(checkpoint: Checkpoint, step: Step, folds: Folds | None = None) -> torch.Tensor | None:
    """Read the bias among a step's companions, merged and folded, in its output's dtype; None without one."""
    info = step.companions.get("bias")
    if info is None:
        return None
    bias = checkpoint.read_tensor(info)
    folded = folds is not None and info.name in folds.tensors
    if not step.bias_merges and not folded:
        return bias
    merged = merge_into(bias, step.bias_merges, checkpoint.read_tensor)
    output = next(o for o in step.outputs if o.name == info.name)
    return _narrowed(merged if folds is None else folds.apply(info.name, merged), output, step.bias_merges)


def read_bytes_of(checkpoint: Checkpoint, info: TensorInfo) -> torch.Tensor:
    """Read a tensor of any dtype as its bytes: uint8 [nbytes]."""
    data = torch.empty(info.nbytes, dtype=torch.uint8)
    checkpoint.read_into(info, data.numpy().data)
    return data


def _narrowed(merged: torch.Tensor, info: OutputTensor, merges: tuple[Merge, ...]) -> torch.Tensor:
    narrow = merged.to(torch_dtype(info.dtype))
    if not bool(torch.isfinite(narrow.float()).all()):
        what, way_out = "folded", "convert with --fold off"
        if merges:
            what, way_out = f"with {merges[0].adapter.file} merged", "lower --merge-lora-scale"
        raise ConversionError(f"{info.name}: {what} it holds values that {info.dtype} cannot hold; {way_out}")
    return narrow


def _read_float32(checkpoint: Checkpoint, step: Step) -> torch.Tensor:
    """Read the weight as float32, converted part by part: it is never held in two dtypes."""
    info = step.source
    scale = step.companions.get("scale")
    if info.strided:
        whole = checkpoint.read_tensor(info).float()
        if scale is not None:
            whole.view(-1, whole.shape[-1]).mul_(_scale(checkpoint, scale))
        return whole
    weight = empty(info.shape, torch.float32)
    flat, part = weight.view(-1), torch.empty(min(_PART, info.numel), dtype=torch_dtype(info.dtype))
    for start in range(0, info.numel, _PART):
        piece = part[: info.numel - start]
        checkpoint.read_into(info, piece.view(torch.uint8).numpy().data, start * piece.itemsize)
        flat[start : start + len(piece)] = piece
    if scale is not None:
        weight.view(-1, weight.shape[-1]).mul_(_scale(checkpoint, scale))
    return weight


def _scale(checkpoint: Checkpoint, info: TensorInfo) -> torch.Tensor:
    return checkpoint.read_tensor(info).float().reshape(-1, 1)
