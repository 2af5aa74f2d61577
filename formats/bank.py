"""Banks: the weights [E, N, K] of a mixture of experts in one tensor, as ComfyUI's ``MoEExperts`` reads them.

A bank is stored like a matrix of E x N rows whose first axis is taken apart: weight [E, N, ...], scales
[E, N, 1] or [E, N], what is shared as it is; ``comfy_quant`` has ``num_experts``. ComfyUI 0.33
(comfy/ops.py: MoEExperts._expert_qt_from) takes expert i's part of the weight and of the scales, and of the
rest only what it knows by name: not the rotation of INT8.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .config import shown, whole_number
from .errors import CheckpointError
from .names import SCALE, WEIGHT
from .tensors import StoredTensor, Tensors

KEY = "num_experts"
SINCE = "0.33"
"""The first ComfyUI that reads banks."""


def experts_in(config: Mapping[str, Any], tensors: Tensors) -> int:
    """Return E of a weight [E, N, ..], 0 for one that is no bank.

    A bank says how many experts it has, or has scales for each.
    """
    weight, scale = tensors[WEIGHT], tensors.get(SCALE)
    if len(weight.shape) != 3 or not weight.numel:
        return 0
    apart = scale is not None and len(scale.shape) > 1 and scale.shape[:2] == weight.shape[:2]
    return weight.shape[0] if apart or whole_number(config.get(KEY)) else 0


def require_experts(config: Mapping[str, Any], tensors: Tensors, where: str) -> int:
    """Return `experts_in`; CheckpointError, naming `where`, where ``num_experts`` is not that."""
    found = experts_in(config, tensors)
    if config.get(KEY) is not None and whole_number(config[KEY]) != found:
        shape = list(tensors[WEIGHT].shape)
        raise CheckpointError(f"{where}: num_experts is {shown(config[KEY])}, its weight {shape}")
    return found


def matrix(tensors: Tensors, experts: int) -> Tensors:
    """Return a bank's tensors as those of a matrix of E x N rows; as they are for no experts."""
    return {s: _joined(t, experts) for s, t in tensors.items()}


def _joined(tensor: StoredTensor, experts: int) -> StoredTensor:
    shape = tensor.shape
    if not experts or len(shape) < 2 or shape[0] != experts:
        return tensor
    return replace(tensor, shape=(experts * shape[1], *shape[2:]))


def taken_apart(tensor: StoredTensor, rows: int, experts: int) -> StoredTensor:
    """Return a tensor of a matrix of so many rows as a bank has it; what is not per row as it is."""
    shape = tensor.shape
    if not experts or shape[:1] != (rows,):
        return tensor
    return replace(tensor, shape=(experts, rows // experts, *shape[1:]))


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return [rows, columns] of a weight seen as a matrix: [E N, K] of a bank [E, N, K]."""
    rows = 1
    for n in shape[:-1]:
        rows *= n
    return rows, shape[-1]
