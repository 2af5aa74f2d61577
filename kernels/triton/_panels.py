"""Panels of 16 columns, for the kernels whose columns wait for one another: LDLQ and coordinate descent."""

import triton
import triton.language as tl

# Numbers stand in the functions: Triton compares every global of a kernel at each of its launches.


@triton.jit
def _halves(x):
    """The left and the right half of the columns of x [rows, width]."""
    return tl.split(tl.permute(tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def columns_of(x):
    """The 16 columns of x [rows, 16], a tuple: a thread has all of a row, and each warp has all rows."""
    parts = (x,)
    for _ in tl.static_range(4):
        halves = ()
        for i in tl.static_range(len(parts)):
            left, right = _halves(parts[i])
            halves = halves + (left, right)  # type: ignore[assignment]  # noqa: RUF005 - the compiler has no unpacking
        parts = halves  # type: ignore[assignment]
    columns = ()
    for i in tl.static_range(16):
        columns = columns + (tl.reshape(parts[i], (x.shape[0],)),)  # type: ignore[assignment]  # noqa: RUF005
    return columns


@triton.jit
def from_earlier(passed_ptr, weight_ptr, start, inside, j, B, stride_wi, stride_wj, ROWS: tl.constexpr):
    """What columns before start pass on to columns j of a panel: the product passed weight, [ROWS, 16].

    passed_ptr: of the rows, [ROWS, 1], contiguous along columns. Plain float32, each product added in one
    rounding, no TF32. With two stages a step fetches the next one's operands, first read from L2.
    """
    k = tl.arange(0, 16)
    total = tl.zeros((ROWS, 16), tl.float32)
    for i in range(0, start, 16):
        passed = tl.load(passed_ptr + (i + k)[None, :], mask=inside[:, None], other=0.0)
        weight_at = weight_ptr + (i + k)[:, None] * stride_wi + j[None, :] * stride_wj
        weight = tl.load(weight_at, mask=j[None, :] < B, other=0.0)
        total = tl.dot(passed, weight, total, input_precision="ieee")
    return total


@triton.jit
def ratios_after(ratio_ptr, A: tl.constexpr):
    """Row A of [16, 16] beyond its diagonal, as a tuple of numbers; nothing from the last row on."""
    ratios = ()
    for b in tl.static_range(A + 1, 16):
        ratios = ratios + (tl.load(ratio_ptr + 16 * A + b),)  # type: ignore[assignment]  # noqa: RUF005
    return ratios


@triton.jit
def passed_on(columns, ratios, moved):
    """The columns but the first, each with the first's moved times its ratio added, in one rounding."""
    later = ()
    for b in tl.static_range(len(ratios)):
        later = later + (tl.fma(moved, ratios[b], columns[1 + b]),)  # type: ignore[assignment]  # noqa: RUF005
    return later
