"""Packed codes to int8 weights: bytes are read once, unpacked in registers and written once."""

import torch
import triton
import triton.language as tl

from .._library import Unsupported
from ..decode import Packed, check_packed
from ._arch import Arch, arch_of
from ._codes import STEP, arguments, launch_table, weight_tile
from ._launch import Launch, cdiv
from ._operands import Operand, empty
from ._plan import Plan, Step
from ._planned import planned

ROWS, COLUMNS = 16, 256
"""What a program of four warps decodes: 32 weights a thread."""


@triton.jit
def _decode_kernel(
    w_ptr,
    group_ptr,
    table_ptr,
    out_ptr,
    N,
    K,
    stride_w,
    stride_g,
    plane,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    NATIVE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the int8 weights [N, K] of packed codes, a tile per program."""
    offs_n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(offs_n, N - 1).to(tl.int64)
    pieces = tl.program_id(1) * (COLUMNS // 16) + tl.arange(0, COLUMNS // 16)
    pieces = tl.minimum(pieces, K // 16 - 1)
    q = weight_tile(
        w_ptr, group_ptr, table_ptr, rows, pieces, stride_w, stride_g, plane, BITS, GROUP, NATIVE,
        ROWS, COLUMNS,
    )  # fmt: skip
    cols = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    out = out_ptr + rows[:, None] * K + cols[None, :]
    tl.store(out, q, mask=(offs_n < N)[:, None] & (cols < K)[None, :])


def native(arch: Arch) -> bool:
    """Return whether the GPU has the byte permute as one instruction that Triton can name."""
    return arch.family.startswith("sm")


def takes(qweight: Operand, group_scale: Operand | None, shape: Packed) -> None:
    """Raise Unsupported for what is not read in whole words and pieces of 16 columns."""
    if shape.k % STEP or shape.group % STEP:
        raise Unsupported(f"{shape.k} columns in groups of {shape.group} are no multiples of {STEP}")
    if qweight.stride(1) != 1 or qweight.stride(0) % 4 or not qweight.aligned:
        raise Unsupported("the packed weight's rows are not whole words in memory")
    if group_scale is not None and group_scale.stride(1) != 1 and group_scale.shape[1] > 1:
        raise Unsupported("the groups' scales are not contiguous in a row")


def decoded(
    qweight: Operand, bits: int, group_scale: Operand | None, table: Operand | None, shape: Packed, arch: Arch
) -> tuple[Launch, Operand]:
    """Return the launch that decodes a weight, and its result int8 [N, K]."""
    out = empty((shape.n, shape.k), torch.int8, qweight.device)
    args = {
        **arguments(qweight, bits, group_scale, table, shape, native(arch)),
        "out_ptr": out,
        "N": shape.n,
        "K": shape.k,
        "ROWS": ROWS,
        "COLUMNS": COLUMNS,
    }
    grid = (cdiv(shape.n, ROWS), cdiv(shape.k, COLUMNS))
    return Launch(_decode_kernel, grid, args, num_warps=4, num_stages=1), out


def prepared(
    bits: int, group_scale: Operand | None, codebook: Operand | None, device: torch.device
) -> tuple[list[Step], Operand | None]:
    """Return the steps before a weight is decoded, and the table of its integers where it takes one."""
    if bits == 6 or group_scale is None:
        return [], None
    launch, table = launch_table(None if codebook is None else codebook.contiguous(), device)
    return [launch], table


@planned
def decode(qweight, bits, group_scale=None, codebook=None) -> Plan:
    """Plan `kernels.decode`: one launch, two with a table."""
    shape = check_packed(qweight, bits, group_scale, codebook)
    arch = arch_of(qweight.device)
    takes(qweight, group_scale, shape)
    if not shape.n * shape.k:
        return Plan([], empty((shape.n, shape.k), torch.int8, qweight.device))
    before, table = prepared(bits, group_scale, codebook, qweight.device)
    launch, out = decoded(qweight, bits, group_scale, table, shape, arch)
    return Plan([*before, launch], out)
