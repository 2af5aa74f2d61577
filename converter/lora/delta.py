"""The arithmetic of a merge: weight + sum of scaled changes, in float32.

All low-rank changes of the same rows are one GEMM, [N, sum of ranks] x [sum of ranks, K], added in place.
LoHa and LoKr: LyCORIS, Yeh et al. 2023, https://arxiv.org/abs/2309.14859. DoRA: Liu et al. 2024,
https://arxiv.org/abs/2402.09353.
"""

from collections.abc import Callable, Iterable, Sequence

import torch

from ...files.checkpoint import TensorInfo
from ...formats.errors import ConversionError
from ...names.rows import Segments
from .adapter import Adapter
from .merge import Merge

Reader = Callable[[TensorInfo], torch.Tensor]
_TINY = torch.finfo(torch.float32).tiny


def merge_into(weight: torch.Tensor, merges: Iterable[Merge], read: Reader) -> torch.Tensor:
    """`weight` with all merges added, in order: float32, the same shape.

    weight: any float dtype; a float32 one is changed in place. read: gives a LoRA tensor. ConversionError
    names a LoRA tensor with NaN or Inf.
    """
    merged = weight.float()
    rows = merged.view(merged.shape[0] if merged.ndim else 1, -1)
    waiting: dict[Segments, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for merge in merges:
        tensors = read_finite(merge.adapter, read)
        factor = merge.adapter.factor(float(tensors["alpha"]) if "alpha" in tensors else None)
        if "dora" in tensors:
            _add_products(rows, waiting)
            _decompose(rows, merge, factor, tensors)
        elif merge.adapter.kind == "lora":
            up = tensors["up"].flatten(1).mul_(factor * merge.scale)
            waiting.setdefault(merge.segments, []).append((up, tensors["down"].flatten(1)))
        else:
            _add(rows, merge.segments, _change(merge.adapter, tensors), factor * merge.scale)
    _add_products(rows, waiting)
    return merged


def read_finite(adapter: Adapter, read: Reader) -> dict[str, torch.Tensor]:
    """An adapter's tensors by role, float32. ConversionError names one with NaN or Inf."""
    tensors = {}
    for role, info in adapter.tensors.items():
        tensor = read(info).float()
        # A sum is one pass; only one that is not finite needs a look at every value.
        if not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all()):
            raise ConversionError(f"{adapter.file}: {info.name!r} holds NaN or Inf: the LoRA is damaged")
        if role == "alpha" and tensor.numel() != 1:
            raise ConversionError(f"{adapter.file}: {info.name!r} is {list(tensor.shape)}, not one number")
        tensors[role] = tensor
    return tensors


def _change(adapter: Adapter, t: dict[str, torch.Tensor]) -> torch.Tensor:
    """The unscaled change [N, K] of an adapter, float32."""
    if adapter.kind == "lora":
        return t["up"].flatten(1) @ t["down"].flatten(1)
    if adapter.kind == "loha":
        first = t["hada_w1_a"] @ t["hada_w1_b"].flatten(1)
        return first.mul_(t["hada_w2_a"] @ t["hada_w2_b"].flatten(1))
    if adapter.kind == "lokr":
        first, second = (
            t[w] if w in t else t[f"{w}_a"] @ t[f"{w}_b"].flatten(1) for w in ("lokr_w1", "lokr_w2")
        )
        return torch.kron(first.flatten(1), second.flatten(1))
    return t["diff"].reshape(adapter.shape)


def _targets(rows: torch.Tensor, segments: Segments) -> Sequence[tuple[torch.Tensor, slice]]:
    """Rows of the weight with the rows of the change that belong to them."""
    if not segments:
        return [(rows, slice(None))]
    return [(rows[to : to + count], slice(start, start + count)) for to, start, count in segments]


def _add_products(
    rows: torch.Tensor, waiting: dict[Segments, list[tuple[torch.Tensor, torch.Tensor]]]
) -> None:
    """Add all waiting low-rank changes, those of the same rows as one product."""
    for segments, pairs in waiting.items():
        up = torch.cat([up for up, _ in pairs], 1) if len(pairs) > 1 else pairs[0][0]
        down = torch.cat([down for _, down in pairs]) if len(pairs) > 1 else pairs[0][1]
        for target, part in _targets(rows, segments):
            target.addmm_(up[part], down)
    waiting.clear()


def _add(rows: torch.Tensor, segments: Segments, change: torch.Tensor, scale: float) -> None:
    for target, part in _targets(rows, segments):
        target.add_(change[part], alpha=scale)


def _decompose(rows: torch.Tensor, merge: Merge, factor: float, tensors: dict[str, torch.Tensor]) -> None:
    """DoRA: V = W + change; W += scale (m V / |V| - W). m is one magnitude a row, or one a column."""
    change = _change(merge.adapter, tensors).mul_(factor)
    magnitude = tensors["dora"]
    by_row = magnitude.ndim == 1 or (magnitude.shape[0] == change.shape[0] and magnitude[0].numel() == 1)
    count = change.shape[0] if by_row else change.shape[1]
    if magnitude.numel() != count:
        name = merge.adapter.tensors["dora"].name
        raise ConversionError(
            f"{merge.adapter.file}: {name!r} {list(magnitude.shape)} gives no magnitude for each row or "
            f"column of {list(change.shape)}"
        )
    magnitude = magnitude.reshape(-1, 1) if by_row else magnitude.reshape(1, -1)
    for target, part in _targets(rows, merge.segments):
        direction = target + change[part]
        norm = direction.norm(dim=1 if by_row else 0, keepdim=True).clamp_(min=_TINY)
        ratio = (magnitude[part] if by_row else magnitude) / norm
        target.lerp_(direction.mul_(ratio), merge.scale)
