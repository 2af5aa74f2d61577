"""LDLQ block update: quantize a block of columns with the error of each fed to the later ones.

Frantar et al., "GPTQ" (2022), Algorithm 1; Chee et al., "QuIP" (2023), Theorem 6 shows that it
is LDLQ: the optimal adaptive rounding for the proxy loss tr((W - Q) H (W - Q)^T).
"""

import torch

from . import _checks
from ._library import define
from .scales import QMAX

MAX_COLUMNS = 128
"""Widest block: what one GPU program works through, and what one GEMM then propagates."""


def _check(q, w, feedback, scale, levels) -> None:
    _checks.int8("q", q)
    _checks.matrix("q", q)
    n, b = q.shape
    if not 1 <= b <= MAX_COLUMNS:
        raise ValueError(f"a block has 1 to {MAX_COLUMNS} columns, not {b}")
    if w.shape != q.shape or w.dtype != torch.float32:
        raise ValueError(f"w must be float32 {tuple(q.shape)} like q, not {w.dtype} {tuple(w.shape)}")
    if feedback.shape != (b, b) or feedback.dtype != torch.float32:
        raise ValueError(f"feedback must be float32 ({b}, {b}), not {feedback.dtype} {tuple(feedback.shape)}")
    if not 1 <= levels <= QMAX:
        raise ValueError(f"levels must lie between 1 and {QMAX}, not {levels}")
    if scale.numel() != 1 and scale.shape != (n, 1):
        raise ValueError(f"scale must have one element or shape ({n}, 1), not {tuple(scale.shape)}")


def _ldlq_(
    q: torch.Tensor, w: torch.Tensor, feedback: torch.Tensor, scale: torch.Tensor, levels: int = QMAX
) -> torch.Tensor:
    _check(q, w, feedback, scale, levels)
    n, b = q.shape
    # Transposed, a column is contiguous, and its feedback is one matrix-vector product.
    # A copy even where the transpose of one row or column already counts as contiguous.
    columns = w.t().clone(memory_format=torch.contiguous_format)
    errors = torch.zeros(b, n, dtype=torch.float32, device=w.device)
    rounded = torch.empty(b, n, dtype=torch.float32, device=w.device)
    s = scale.float().reshape(-1)
    inverse = s.reciprocal()
    diagonal = feedback.diagonal().tolist()
    upper = feedback.t().contiguous()
    for j in range(b):
        column, r = columns[j], rounded[j]
        if j:
            column.addmv_(errors[:j].t(), upper[j, :j], alpha=-1.0)
        torch.mul(column, inverse, out=r)
        r.round_().clamp_(-levels, levels)
        torch.addcmul(column, r, s.expand_as(r), value=-1.0, out=errors[j])
        errors[j].div_(diagonal[j])
    q.copy_(rounded.t())
    return errors.t().contiguous()


def _fake(
    q: torch.Tensor, w: torch.Tensor, feedback: torch.Tensor, scale: torch.Tensor, levels: int = QMAX
) -> torch.Tensor:
    return torch.empty(w.shape, dtype=torch.float32, device=w.device)


_op = define(
    "ldlq_(Tensor(a!) q, Tensor w, Tensor feedback, Tensor scale, int levels=127) -> Tensor",
    eager=_ldlq_,
    fake=_fake,
    device="ldlq.ldlq_",
)


def ldlq_(
    q: torch.Tensor, w: torch.Tensor, feedback: torch.Tensor, scale: torch.Tensor, levels: int = QMAX
) -> torch.Tensor:
    """Quantize w [N, B] into q int8 [N, B] in place, column by column; returns the errors [N, B].

    feedback: float32 [B, B], the diagonal block of U, where inverse(H) = U^T U with U upper
        triangular; entries below the diagonal are not read.
    For j = 0 .. B-1: ``w_j -= sum_{i<j} e_i U_ij``; ``q_j = clamp(round(w_j / scale), -levels, levels)``;
    ``e_j = (w_j - q_j scale) / U_jj``. The caller continues with ``W_later -= e U[block, later]``.
    w: float32, left as it was. scale: float32, one element or [N, 1]. q may be a strided view.
    levels: the largest code, 1 to 127. B is at most 128. ValueError for shapes or dtypes that do not fit.
    """
    return _op(q, w, feedback, scale, levels)
