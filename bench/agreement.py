"""Bit-exact agreement of quantize, dequantize and rotate with an independent float64 reference.

    python bench/agreement.py

The reference is tests/support/oracle.py: the formulas in float64 numpy. What counts as what:

- equal: the same integer, or the same float after the reference is rounded once to the output dtype.
- tie (integers): one apart, where the float64 quotient x / scale lies within a band of a half-integer.
  The band is 127.5 x 2**-23 = 1.5e-5, what the float32 product x * (1 / scale) can move a quotient by;
  with a rotation, plus the float32 error of the rotated value, at most 7 x 2**-24 x the 2-norm of its
  group (twice the largest ever measured), over the scale.
- tie (floats): different after rounding, but within the same float32 error of the rotation of a
  boundary between two numbers of the output dtype. float32 outputs of a rotation are all such
  boundaries, so there equality is counted on whole numbers, where float32 sums are exact.
- mismatch: every other difference. The exit code is 1 if there is one.
"""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
import oracle
from inputs import FLOATS, GROUPS, heavy, int8, short, whole

from convert_to_quant import kernels

SHAPES = ((123, 1024), (1100, 2048), (5, 3, 77, 1024))
BLOCKS = ((128, 128), (1, 128), (32, 64))


def rowwise(x: torch.Tensor, group: int) -> oracle.Count:
    """Count agreement of `quantize_rowwise`, rotated by `group`."""
    q, scale = kernels.quantize_rowwise(x, group)
    return rotated_integers(x, group, q, oracle.array(scale))


def tensorwise(x: torch.Tensor, group: int) -> oracle.Count:
    """Count agreement of `quantize_tensorwise`, rotated by `group`."""
    q, scale = kernels.quantize_tensorwise(x, rotation=group)
    return rotated_integers(x, group, q, oracle.array(scale))


def rotated_integers(x: torch.Tensor, group: int, q: torch.Tensor, scale: np.ndarray) -> oracle.Count:
    """Count agreement of integers q of x; ties lie within the float32 error of its rotation."""
    exact = oracle.array(x)
    band = oracle.TIE + oracle.rotation_error(exact, group) / scale
    return oracle.count(oracle.array(q), oracle.rotate(exact, group) / scale, band)


def blockwise(x: torch.Tensor, block_m: int, block_k: int) -> oracle.Count:
    """Count agreement of `quantize_blockwise`; a wrong scale makes every element a mismatch."""
    x = x.reshape(-1, x.shape[-1])
    q, scale = kernels.quantize_blockwise(x, block_m, block_k)
    exact = oracle.array(x)
    want = oracle.block_scale(exact, block_m, block_k)
    if not np.array_equal(oracle.array(scale), want):
        return oracle.Count(x.numel(), 0, 0, x.numel())
    return oracle.count(oracle.array(q), exact / oracle.spread(want, x.shape, block_m, block_k))


def floats(got: torch.Tensor, want: np.ndarray, slack: np.ndarray | float) -> oracle.Count:
    """Count against `want` rounded once through float32; a tie equals some value within `slack`."""
    low, middle, high = (
        oracle.array(torch.from_numpy((want + d).astype(np.float32)).to(got.dtype))
        for d in (-slack, 0.0, slack)
    )
    values = oracle.array(got)
    equal = values == middle
    ties = ~equal & (low <= values) & (values <= high)
    return oracle.Count(values.size, int(equal.sum()), int(ties.sum()), int((~equal & ~ties).sum()))


def rotate(x: torch.Tensor, group: int) -> oracle.Count:
    """Count agreement of `rotate`."""
    exact = oracle.array(x)
    slack = oracle.rotation_error(exact, group)
    return floats(kernels.rotate(x, group), oracle.rotate(exact, group), slack)


def dequantize(q: torch.Tensor, scale: torch.Tensor, spread: np.ndarray, dtype, group: int) -> oracle.Count:
    """Count agreement of `dequantize`; spread: the scale, broadcast to q."""
    exact = oracle.array(q) * spread
    # The product is rounded to float32 before it is rotated: another half unit of each element.
    slack = oracle.rotation_error(exact, group) * (1 + 1 / oracle.ROTATION)
    got = kernels.dequantize(q, scale, dtype, group)
    return floats(
        got, oracle.rotate(exact if group else exact.astype(np.float32).astype(np.float64), group), slack
    )


def cases(shapes):
    """Yield (op, dtype, detail, Count) of every combination."""
    for shape, dtype in itertools.product(shapes, FLOATS):
        x = heavy(*shape, dtype=dtype)
        ints = int8(*shape)
        rows = torch.rand((*shape[:-1], 1)) * 0.01 + 1e-4
        for group in (0, *GROUPS):
            detail = f"rotation {group}" if group else "plain"
            yield "quantize row", dtype, detail, rowwise(x, group)
            yield "quantize tensor", dtype, detail, tensorwise(x, group)
            spread = np.broadcast_to(oracle.array(rows), shape)
            if not (group and dtype == torch.float32):
                yield "dequantize row", dtype, detail, dequantize(ints, rows, spread, dtype, group)
            if group:
                if dtype != torch.float32:
                    yield "rotate", dtype, detail, rotate(x, group)
                yield "rotate", dtype, detail + ", whole numbers", rotate(whole(*shape, dtype=dtype), group)
        for block_m, block_k in BLOCKS:
            detail = f"blocks {block_m} x {block_k}"
            yield "quantize block", dtype, detail, blockwise(x, block_m, block_k)
            flat = ints.reshape(-1, shape[-1])
            m, k = flat.shape
            scale = torch.rand(-(-m // block_m), -(-k // block_k)) * 0.01 + 1e-4
            spread = oracle.spread(oracle.array(scale), (m, k), block_m, block_k)
            yield "dequantize block", dtype, detail, dequantize(flat, scale, spread, dtype, 0)


def main() -> int:
    """Run the command line; the exit code is 1 when there is a mismatch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the first shape only")
    args = parser.parse_args()
    torch.manual_seed(0)
    totals: dict[tuple[str, str, str], np.ndarray] = {}
    for op, dtype, detail, counts in cases(SHAPES[:1] if args.quick else SHAPES):
        key = (op, short(dtype), detail)
        totals[key] = totals.get(key, np.zeros(4, int)) + np.array(counts)
    head = f"{'op':<17}{'dtype':<10}{'detail':<29}{'elements':>12}{'equal':>12}{'ties':>8}{'mismatches':>12}"
    print(head, "-" * len(head), sep="\n")
    for (op, dtype, detail), row in sorted(totals.items()):
        print(f"{op:<17}{dtype:<10}{detail:<29}{row[0]:>12,}{row[1]:>12,}{row[2]:>8,}{row[3]:>12,}")
    every = sum(totals.values())
    print("-" * len(head))
    print(f"{'all':<56}{every[0]:>12,}{every[1]:>12,}{every[2]:>8,}{every[3]:>12,}")
    return int(every[3] > 0)


if __name__ == "__main__":
    sys.exit(main())
