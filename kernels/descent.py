"""Coordinate descent over a block of columns: each code in turn to where the loss is least given all others.

The loss is tr((W - Q) H (W - Q)^T), LDLQ's own; the best value of a code is the one nearest to its present
value plus gradient / H_jj (Behdin et al., "QuantEase", 2023, eq. 7).
"""

import torch

from . import _checks
from ._library import define
from .ldlq import MAX_COLUMNS
from .scales import QMAX


def _check(q, gradient, hessian, scale, levels) -> None:
    _checks.int8("q", q)
    _checks.matrix("q", q)
    n, b = q.shape
    if not 1 <= b <= MAX_COLUMNS:
        raise ValueError(f"a block has 1 to {MAX_COLUMNS} columns, not {b}")
    if gradient.shape != q.shape or gradient.dtype != torch.float32:
        raise ValueError(
            f"gradient must be float32 {tuple(q.shape)} like q, not {gradient.dtype} {tuple(gradient.shape)}"
        )
    if hessian.shape != (b, b) or hessian.dtype != torch.float32:
        raise ValueError(f"hessian must be float32 ({b}, {b}), not {hessian.dtype} {tuple(hessian.shape)}")
    if not 1 <= levels <= QMAX:
        raise ValueError(f"levels must lie between 1 and {QMAX}, not {levels}")
    if scale.numel() != 1 and scale.shape != (n, 1):
        raise ValueError(f"scale must have one element or shape ({n}, 1), not {tuple(scale.shape)}")


def _descend_(
    q: torch.Tensor, gradient: torch.Tensor, hessian: torch.Tensor, scale: torch.Tensor, levels: int = QMAX
) -> torch.Tensor:
    _check(q, gradient, hessian, scale, levels)
    n, b = q.shape
    # Transposed, a column is contiguous, and what earlier moves do to it is one matrix-vector product.
    columns = gradient.t().clone(memory_format=torch.contiguous_format)
    codes = q.t().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    changes = torch.zeros(b, n, dtype=torch.float32, device=q.device)
    found = torch.empty(n, dtype=torch.float32, device=q.device)
    s = scale.float().reshape(-1).expand(n)
    upper = hessian.t().contiguous()
    diagonal = hessian.diagonal()
    for j in range(b):
        column, code = columns[j], codes[j]
        if j:
            column.addmv_(changes[:j].t(), upper[j, :j], alpha=-1.0)
        torch.mul(s, diagonal[j], out=found)
        torch.div(column, found, out=found)
        found.add_(code).round_().clamp_(-levels, levels)
        torch.sub(found, code, out=changes[j])
        changes[j].mul_(s)
        code.copy_(found)
    q.copy_(codes.t())
    return changes.t().contiguous()


def _fake(
    q: torch.Tensor, gradient: torch.Tensor, hessian: torch.Tensor, scale: torch.Tensor, levels: int = QMAX
) -> torch.Tensor:
    return torch.empty(gradient.shape, dtype=torch.float32, device=gradient.device)


_op = define(
    "descend_(Tensor(a!) q, Tensor gradient, Tensor hessian, Tensor scale, int levels=127) -> Tensor",
    eager=_descend_,
    fake=_fake,
    device="descent.descend_",
)


def descend_(
    q: torch.Tensor, gradient: torch.Tensor, hessian: torch.Tensor, scale: torch.Tensor, levels: int = QMAX
) -> torch.Tensor:
    """Move the codes q int8 [N, B] in place, column by column; return by how much their values change [N, B].

    gradient: float32 [N, B], (W - Q) H in these columns before any move; left as it was. hessian: float32
        [B, B], the block of H on its diagonal, symmetric, its own diagonal positive.
    For j = 0 .. B-1: ``g = gradient_j - sum_{i<j} d_i H_ij``; ``new = clamp(round(q_j + g / (scale H_jj)),
    -levels, levels)``; ``d_j = (new - q_j) scale``. The caller's W - Q falls by d, which is returned.
    scale: float32, one element or [N, 1]. q may be a strided view. levels: the largest code, 1 to 127. B is
    at most 128. ValueError for shapes or dtypes that do not fit.
    """
    return _op(q, gradient, hessian, scale, levels)
