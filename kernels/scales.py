"""Scales: the float32 number that multiplies an int8 value to give the float back."""

import torch

from ._checks import Described

QMAX = 127
"""Largest magnitude used: -128 stays unused so that the grid is symmetric."""

TINY = 1e-30
"""Smallest scale. An all-zero row gets it: its integers are 0 and its scale stays finite.
The same floor as comfy-kitchen's, so both give such rows the same bytes."""


def scale_from_absmax(absmax: torch.Tensor, levels: float = QMAX) -> torch.Tensor:
    """Return absmax / levels, at least TINY, float32. NaN and Inf pass through for the caller to see.

    The divisor is a tensor: by a Python number, CUDA multiplies with the rounded reciprocal,
    and then one row in some would differ in its last bit from the CPU and from Triton.
    """
    absmax = absmax.float()
    return (absmax / absmax.new_full((), levels)).clamp_min(TINY)


def quantize_with(work: torch.Tensor, scale: torch.Tensor, saturate: bool) -> torch.Tensor:
    """Scale and round `work` (float32, overwritten) half to even; the result holds integers.

    The quotient is taken as x * (1 / scale), which is what the GPU kernels do: one
    division per row instead of one per element. `saturate` clips to [-127, 127] and takes NaN as 0: only a
    given scale needs it, a scale from the absmax cannot overflow, and shows NaN itself.
    """
    work.mul_(scale.reciprocal()).round_()
    return work.clamp_(-QMAX, QMAX).nan_to_num_(nan=0.0) if saturate else work


def absmax_rows(work: torch.Tensor) -> torch.Tensor:
    """Return max |x| over the last axis, kept as an axis of one; NaN for a row that has one.

    Two reductions without a temporary are faster on a CPU than ``abs().amax()`` or the
    infinity norm (35, 52 and 316 microseconds for 64 x 3072).
    """
    high, low = work.amax(-1, keepdim=True), work.amin(-1, keepdim=True)
    return torch.maximum(high, low.neg_())


def granularity(rows: int, cols: int, scale: Described) -> tuple[int, int]:
    """Return the (rows, columns) that one scale entry covers in integers [rows, cols].

    [] or one element: the whole tensor; [rows, 1]: one row; [a, b]: blocks whose edges are
    the powers of two with ceil(rows / edge) = a and ceil(cols / edge) = b. ValueError when the
    shapes do not fit.
    """
    if scale.numel() == 1:
        return rows, cols
    if scale.dim() == 2 and tuple(scale.shape) == (rows, 1):
        return 1, cols
    if scale.dim() == 2 and scale.numel():
        edges = tuple(_edge(n, parts) for n, parts in zip((rows, cols), scale.shape, strict=True))
        if all(edges):
            return edges[0], edges[1]
    raise ValueError(
        f"scale of shape {tuple(scale.shape)} does not fit integers [{rows}, {cols}]: expected one "
        f"element, [{rows}, 1] or one entry per block with power-of-two edges"
    )


def _edge(n: int, parts: int) -> int:
    """Return the power of two b with ceil(n / b) == parts (n itself when parts is 1), or 0."""
    if parts == 1:
        return n
    if parts < 1 or parts > n:
        return 0
    edge = 1 << (-(-n // parts) - 1).bit_length()
    return edge if -(-n // edge) == parts else 0
