"""The folds that a file's header tells of, to be done to its original: what a verification compares with."""

from __future__ import annotations

import torch

from ...files.checkpoint import Checkpoint
from ...files.dtypes import QUANTIZABLE
from ...folding.coding import KEY, decoded
from ...folding.factors import Folds, product, widened
from ...folding.inputs import FoldedInput, renamed
from ...formats.errors import CheckpointError
from ...names.prefixes import CHECKPOINT
from .weights import Source

_ELEMENTS = 1 << 20


def stored_folds(original: Checkpoint, after: Checkpoint) -> Folds | None:
    """Return the folds that made `after` of the original, under the names of `after`; None without any.

    An original that tells of the same folds has them already. CheckpointError for a header that does not fit
    the two.
    """
    if KEY not in after.metadata or after.metadata[KEY] == original.metadata.get(KEY):
        return None
    inputs, factors = decoded(after.metadata)
    inputs = renamed(inputs, after.tensors)
    weights: dict[str, str] = {}
    for one in inputs:
        for name in sorted(one.tensors()):
            weights[name] = _original_name(name, original)
        _require_room(one, original, weights)

    def gain(number: int, layer: str) -> torch.Tensor:
        one, mean = inputs[number], factors[number].mean
        assert mean is not None
        start = next(c.start for c in one.columns if c.layer == layer)
        return _product(original, weights[f"{layer}.weight"], start, widened(mean, one))

    return Folds(inputs, factors, gain)


def _original_name(name: str, original: Checkpoint) -> str:
    bare = next((name[len(p) :] for p in CHECKPOINT if p and name.startswith(p)), name)
    found = (
        name
        if name in original.tensors
        else next((p + bare for p in CHECKPOINT if p + bare in original.tensors), "")
    )
    if not found:
        raise CheckpointError(
            f"{original.path}: has no {name}, which {KEY} in the other file's metadata names"
        )
    return found


def _require_room(one: FoldedInput, original: Checkpoint, names: dict[str, str]) -> None:
    """Refuse places that a tensor of the original does not have."""
    ends = [(f"{c.layer}.weight", 1, c.start + one.width) for c in one.columns]
    ends += [(r.tensor, 0, r.start + one.factors) for r in one.rows]
    for name, axis, end in ends:
        info = original.tensors[names[name]]
        if len(info.shape) <= axis or info.shape[axis] < end or info.dtype not in QUANTIZABLE:
            raise CheckpointError(
                f"{original.path}: {info.name} is {info.dtype} {list(info.shape)}, which {KEY} in the other "
                "file's metadata does not fit"
            )


def _product(original: Checkpoint, name: str, start: int, mean: torch.Tensor) -> torch.Tensor:
    """Return W mu, read in pieces of rows, float64 [N]."""
    source, (n, k) = Source.of(original, name), original.tensors[name].shape
    step = max(1, _ELEMENTS // k)
    return torch.cat([product(source.rows(r, min(r + step, n)), start, mean) for r in range(0, n, step)])
