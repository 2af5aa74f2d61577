"""The ops in float64 numpy, written from their formulas and sharing no code with the package.

Arrays in, arrays out. A scale is rounded to float32 because that is what is stored; everything
else stays in float64. `count` says how integers that differ are told into ties and mismatches.
"""

from typing import NamedTuple

import numpy as np
import torch

U = 2.0**-24
"""Unit roundoff of float32: half the distance from 1 to the next number."""

TIE = 127.5 * 2 * U
"""How far from a half-integer two roundings can move a quotient: x * (1 / scale) in float32 is off by
at most 2 U of a value up to 127.5. Integers may differ from the float64 ones only inside this band."""

ROTATION = 7.0
"""Bound on the error of one rotated float32 element, in units of U x the 2-norm of its group. Twice the
largest measured over all groups and 2 * 10**7 normal, heavy-tailed and nearly constant elements (3.4)."""

_H4 = np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=np.float64)


def array(x: torch.Tensor) -> np.ndarray:
    """The values of a tensor, exactly, as float64."""
    return x.detach().double().numpy()


def hadamard_entry(i: int, j: int, group: int) -> float:
    """Entry (i, j) of the regular Hadamard matrix of order `group`, over sqrt(group), digit by digit."""
    value, n = 1.0, group
    while n > 1:
        value *= _H4[i % 4, j % 4]
        i, j, n = i // 4, j // 4, n // 4
    return value / np.sqrt(group)


def rotate(x: np.ndarray, group: int) -> np.ndarray:
    """Rotate each group of columns: one butterfly of order 4 for every base-4 digit of the column."""
    if group == 0:
        return x.copy()
    y = x.reshape(*x.shape[:-1], -1, group)
    digits = round(np.log(group) / np.log(4))
    y = y.reshape(*y.shape[:-1], *[4] * digits)
    for axis in range(y.ndim - digits, y.ndim):
        y = np.moveaxis(np.moveaxis(y, axis, -1) @ _H4 / 2.0, -1, axis)
    return y.reshape(x.shape)


def rotation_error(x: np.ndarray, group: int) -> np.ndarray:
    """Bound on the float32 error of each element of rotate(x), [.., K]."""
    if group == 0:
        return np.zeros(x.shape)
    norms = np.linalg.norm(x.reshape(*x.shape[:-1], -1, group), axis=-1)
    return np.repeat(ROTATION * U * norms, group, axis=-1).reshape(x.shape)


def scale_of(absmax: np.ndarray) -> np.ndarray:
    """absmax / 127 in float32, at least 1e-30. (A float64 quotient rounds to the same float32.)"""
    return np.maximum((absmax / 127.0).astype(np.float32), np.float32(1e-30)).astype(np.float64)


def row_scale(x: np.ndarray) -> np.ndarray:
    """One scale a row, [.., 1]."""
    return scale_of(np.abs(x).max(-1, keepdims=True))


def tensor_scale(x: np.ndarray) -> np.ndarray:
    """One scale, []."""
    return scale_of(np.abs(x).max())


def block_scale(x: np.ndarray, block_m: int, block_k: int) -> np.ndarray:
    """One scale a block of x [M, K], by looking at each block alone."""
    m, k = x.shape
    rows, cols = range(0, m, block_m), range(0, k, block_k)
    absmax = [[np.abs(x[i : i + block_m, j : j + block_k]).max() for j in cols] for i in rows]
    return scale_of(np.array(absmax))


def spread(scale: np.ndarray, shape: tuple[int, ...], block_m: int = 1, block_k: int = 1) -> np.ndarray:
    """A scale as one entry an element: block scales are repeated, others broadcast."""
    if scale.ndim == 2 and (block_m > 1 or block_k > 1):
        scale = np.repeat(np.repeat(scale, block_m, 0), block_k, 1)[: shape[0], : shape[1]]
    return np.broadcast_to(scale, shape)


def integers(quotient: np.ndarray) -> np.ndarray:
    """Half to even, clipped to [-127, 127]."""
    return np.clip(np.rint(quotient), -127, 127)


def integers_in_float32(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The integers by the letter of the contract, round(x * (1 / scale)) in float32: no tie is excused."""
    inverse = np.float32(1) / scale.astype(np.float32)
    return integers(x.astype(np.float32) * inverse).astype(np.float64)


def dequantize(q: np.ndarray, scale: np.ndarray, rotation: int = 0) -> np.ndarray:
    """q * scale (one entry an element), un-rotated."""
    return rotate(q * scale, rotation)


def linear(
    q: np.ndarray, weight: np.ndarray, q_scale: np.ndarray, w_scale: np.ndarray, bias=0.0
) -> np.ndarray:
    """(q * q_scale) (weight * w_scale)^T + bias for scales spread to one entry an element."""
    return (q * q_scale) @ (weight * w_scale).T + bias


def hessian(x: np.ndarray, rotation: int = 0) -> np.ndarray:
    """X^T X over all leading axes, of the rotated tokens."""
    rows = rotate(x.reshape(-1, x.shape[-1]), rotation)
    return rows.T @ rows


def ldlq_factor(h: np.ndarray) -> np.ndarray:
    """Strictly upper A with H = (A + I) D (A + I)^T, D diagonal (Chee et al. 2023, equation 4)."""
    c = np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
    return c / np.diag(c) - np.eye(len(h))


def ldlq_targets(w: np.ndarray, q: np.ndarray, scale: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """What LDLQ rounds in each column, given the integers that it chose before: W + (W - q s) A."""
    return w + (w - q * scale) @ factor


class Count(NamedTuple):
    """How integers compare with the reference."""

    elements: int
    equal: int
    ties: int
    """Off by one where the float64 quotient lies within the stated band of a half-integer."""
    mismatches: int
    """Every other difference."""


def count(q: np.ndarray, quotient: np.ndarray, band: np.ndarray | float = TIE) -> Count:
    """Compare integers `q` with the float64 `quotient` they stand for; `band` says what is a tie."""
    want = integers(quotient)
    differ = q != want
    near = np.abs(np.abs(quotient - np.trunc(quotient)) - 0.5) <= band
    ties = differ & near & (np.abs(q - want) == 1)
    return Count(q.size, int((~differ).sum()), int(ties.sum()), int((differ & ~ties).sum()))
