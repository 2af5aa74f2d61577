"""The second moment of a layer's inputs, summed over calibration tokens."""

import torch

from . import _checks
from ._library import define
from .rotation import _rotate, check_rotation

_ELEMENTS = 1 << 21
"""Elements of x held as float32 at once: 8 MiB, little beside an h that is large."""

_COLUMNS = 1024


def _accumulate_hessian_(h: torch.Tensor, x: torch.Tensor, rotation: int = 0) -> None:
    _checks.floating("x", x)
    _checks.has_rows("x", x)
    k = x.shape[-1]
    if h.shape != (k, k) or h.dtype != torch.float32:
        raise ValueError(
            f"h must be float32 ({k}, {k}) for x with {k} columns, not {h.dtype} {tuple(h.shape)}"
        )
    check_rotation(k, rotation)
    rows = x.reshape(-1, k)
    step = max(1, _ELEMENTS // k)
    for start in range(0, rows.shape[0], step):
        part = rows[start : start + step].float()
        part = _rotate(part, rotation) if rotation else part
        # Only from the diagonal to the right: the rest is mirrored, which saves up to half the GEMM.
        for i in range(0, k, _COLUMNS):
            h[i : i + _COLUMNS, i:].addmm_(part[:, i : i + _COLUMNS].t(), part[:, i:])
    _mirror(h)


def _mirror(h: torch.Tensor, block: int = 256) -> None:
    """Copy the upper triangle onto the lower: a GEMM may round h[i, j] and h[j, i] differently."""
    k = h.shape[0]
    for i in range(0, k, block):
        diagonal = h[i : i + block, i : i + block]
        diagonal.copy_(diagonal.triu() + diagonal.triu(1).t())
        h[i + block :, i : i + block] = h[i : i + block, i + block :].t()


def _fake(h: torch.Tensor, x: torch.Tensor, rotation: int = 0) -> None:
    return None


_op = define(
    "accumulate_hessian_(Tensor(a!) h, Tensor x, int rotation=0) -> ()",
    eager=_accumulate_hessian_,
    fake=_fake,
)


def accumulate_hessian_(h: torch.Tensor, x: torch.Tensor, rotation: int = 0) -> torch.Tensor:
    """Add X^T X to h in place, for tokens x [.., K]; return h, float32 [K, K] and exactly symmetric.

    rotation: rotate the tokens first, for a weight that is quantized in the rotated space.
    Accumulates in float32 whatever x's dtype. TypeError for a non-float x, ValueError for shapes.
    """
    _op(h, x, rotation)
    return h
