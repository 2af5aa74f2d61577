"""The int8 product with its epilogue: which engine and tile serve which shape.

All engines give the same bits: tiles of `_gemm`, split-K with one reducing launch, the Gluon tiles of
`_gluon` on sm_90, and ``torch._int_mm`` (cuBLASLt) with the epilogue as a launch of its own. KERNELS figures
are registers / KiB of shared memory as compiled by Triton 3.9.
"""

import logging
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch

from .. import activations
from .._library import Unsupported
from ..int8_mm import _check, is_blockwise
from ..scales import granularity
from ._arch import Arch, arch_of
from ._epilogue import Epilogue, launch_finish
from ._gemm import TileConfig, launch_product
from ._gluon import GluonConfig, launch_gluon
from ._gluon import tiles as gluon_tiles
from ._launch import TensorDescriptor, cdiv, power_of_2
from ._operands import Operand, aligned, empty, rows_of
from ._plan import Call, Choice, Plan, Step
from ._planned import planned
from ._tuning import bucket

# (largest M, candidates). The first is used where nothing was measured: the static model's choice (`python
# bench/kernels --static`). Up to 16 rows that is the most bytes in flight: 3072 columns make 96 tiles of 32
# and only 48 of 64; M < 64 has split-K among the candidates for the same reason. Up to 512 rows a wide tile
# leaves half of the processors without work.
_FEW = (
    (16, (
        TileConfig(16, 32, 256, 2, 4),
        TileConfig(16, 64, 256, 4, 3),
        TileConfig(16, 64, 128, 4, 4, split_k=4),
        TileConfig(16, 128, 256, 8, 3, split_k=4),
    )),
    (64, (
        TileConfig(64, 64, 128, 4, 4),
        TileConfig(32, 64, 128, 4, 4),
        TileConfig(64, 64, 128, 4, 4, split_k=4),
        TileConfig(64, 128, 128, 4, 3),
    )),
    (256, (
        TileConfig(64, 128, 128, 4, 3),
        TileConfig(128, 128, 128, 8, 3),
        TileConfig(64, 64, 128, 4, 4),
        TileConfig(64, 128, 128, 8, 3, split_k=2),
    )),
)  # fmt: skip

# sm_80: shared memory is read as long as a 128x128x128 tile multiplies; a wide one needs 69 % of that time.
# Its 215 registers leave one program per SM, two of 128x128x64 fit.
POINTERS = (
    *_FEW,
    (512, (
        TileConfig(128, 128, 64, 8, 4),
        TileConfig(64, 128, 128, 4, 3),
        TileConfig(128, 128, 128, 8, 3),
        TileConfig(64, 256, 64, 8, 4),
    )),
    (None, (
        TileConfig(128, 256, 64, 8, 4),
        TileConfig(256, 128, 64, 8, 4),
        TileConfig(128, 128, 64, 4, 4),
        TileConfig(128, 128, 64, 8, 4),
        TileConfig(128, 128, 128, 8, 3),
        TileConfig(64, 256, 64, 8, 4),
    )),
)  # fmt: skip

# sm_86, 89 and 120 multiply at half that rate per SM: every tile is bound by it, and two programs hide waits.
ADA = (
    *POINTERS[:4],
    (None, (
        TileConfig(128, 128, 64, 8, 4),
        TileConfig(256, 128, 64, 8, 4),
        TileConfig(128, 256, 64, 8, 4),
        TileConfig(128, 128, 64, 4, 4),
        TileConfig(128, 128, 128, 8, 3),
    )),
)  # fmt: skip

XPU = (
    *_FEW,
    (None, (
        TileConfig(128, 128, 128, 8, 3),
        TileConfig(128, 128, 64, 8, 4),
        TileConfig(64, 256, 64, 8, 4),
        TileConfig(64, 128, 128, 4, 3),
    )),
)  # fmt: skip

# sm_90 waits for each int8 wgmma: two resident programs per SM (96 KiB) or more work in a step hide it, and
# a wide tile reads least of shared memory (112 % of the product's time, 128x128 125 %) and of L2.
DESCRIPTORS = (
    (16, _FEW[0][1]),
    (64, (
        TileConfig(64, 64, 128, 4, 4, descriptors=True),
        TileConfig(64, 64, 128, 4, 4, split_k=4, descriptors=True),
        TileConfig(64, 128, 128, 4, 4, descriptors=True),
        TileConfig(32, 64, 128, 4, 4),
    )),
    (256, (
        TileConfig(64, 128, 128, 4, 4, descriptors=True),
        TileConfig(128, 128, 128, 8, 3, descriptors=True),
        TileConfig(64, 64, 128, 4, 4, descriptors=True),
        TileConfig(64, 128, 128, 4, 4, split_k=2, descriptors=True),
    )),
    (512, (
        TileConfig(128, 128, 128, 8, 3, descriptors=True),
        TileConfig(64, 128, 128, 4, 4, descriptors=True),
        TileConfig(128, 128, 256, 8, 3, descriptors=True),
        TileConfig(128, 256, 128, 8, 3, descriptors=True),
    )),
    (None, (
        TileConfig(128, 256, 128, 8, 3, descriptors=True),
        TileConfig(256, 128, 128, 8, 3, descriptors=True),
        TileConfig(128, 128, 128, 8, 3, descriptors=True),
        TileConfig(128, 128, 256, 8, 3, descriptors=True),
    )),
)  # fmt: skip

# 256 x 128 has 254 registers here: too near the limit to ship.
SM100 = (
    *DESCRIPTORS[:3],
    (None, (
        TileConfig(128, 128, 128, 8, 3, descriptors=True),
        TileConfig(128, 128, 256, 8, 3, descriptors=True),
        TileConfig(128, 64, 128, 4, 4, descriptors=True),
    )),
)  # fmt: skip

# 64 KiB of shared memory a work-group on both CDNA and RDNA.
AMD = (
    (16, (TileConfig(16, 64, 128, 4, 2), TileConfig(16, 64, 128, 4, 2, split_k=4))),
    (64, (TileConfig(64, 64, 128, 4, 2), TileConfig(64, 64, 128, 4, 2, split_k=4))),
    (None, (TileConfig(128, 128, 64, 8, 2), TileConfig(64, 128, 64, 4, 2))),
)

# Block scales keep an int32 and a float32 tile: 64 rows where the plain product has 128.
BLOCKWISE_POINTERS = (
    (16, (TileConfig(16, 64, 128, 4, 4),)),
    (None, (TileConfig(64, 128, 128, 8, 3), TileConfig(64, 64, 128, 4, 4))),
)
BLOCKWISE_DESCRIPTORS = (
    (16, (TileConfig(16, 64, 128, 4, 4),)),
    (None, (
        TileConfig(64, 128, 128, 4, 4, descriptors=True),
        TileConfig(64, 64, 128, 4, 4, descriptors=True),
    )),
)  # fmt: skip
BLOCKWISE_AMD = (
    (16, (TileConfig(16, 64, 128, 4, 2),)),
    (None, (TileConfig(64, 64, 128, 4, 2),)),
)

TABLES = {
    "sm80": (POINTERS, BLOCKWISE_POINTERS),
    "sm89": (ADA, BLOCKWISE_POINTERS),
    "sm90": (DESCRIPTORS, BLOCKWISE_DESCRIPTORS),
    "sm100": (SM100, BLOCKWISE_DESCRIPTORS),
    "cdna": (AMD, BLOCKWISE_AMD),
    "rdna": (AMD, BLOCKWISE_AMD),
    "xpu": (XPU, BLOCKWISE_POINTERS),
}
"""Family -> (table for one scale per row or tensor, table for block scales)."""

MOST_SUMS = 128 * 128 // 8
"""Sums per warp that leave registers for an activation or a residual: with twice as many they spill."""

# Rows off 16-byte boundaries are read byte by byte: 128 x 128 spills 400 to 2104 bytes, 64 x 64 304.
UNALIGNED = (TileConfig(32, 32, 64, 4, 2), TileConfig(32, 64, 64, 4, 2))

INTERPRETER = (TileConfig(64, 64, 128, 4, 1), TileConfig(32, 64, 64, 4, 1, split_k=3))

MAX_WORKSPACE = 64 << 20
"""Bytes of int32 sums that an engine may allocate. Where split-K would need more, the launch is wide enough
without; ``torch._int_mm`` takes as many rows at a time as fit."""


class IntMM(NamedTuple):
    """``torch._int_mm`` and the epilogue as a second launch: int32 goes through memory, a part at a time."""

    label: str = "torch._int_mm"
    handicap: float = 1.0


Engine = TileConfig | GluonConfig | IntMM

_log = logging.getLogger("convert_to_quant.kernels")


def candidates(
    arch: Arch,
    shape: tuple[int, int, int],
    is_aligned: bool,
    edges: tuple[int, int] | None,
    plain: bool = True,
) -> list[Engine]:
    """Return what can serve a product of shape (M, N, K) on `arch`, the static model's choice first.

    is_aligned: both operands have rows on 16-byte boundaries. plain: the epilogue has no activation and no
    residual. Unsupported for scale blocks of under 32 columns.
    """
    m, n, k = shape
    found: list[TileConfig]
    if arch.family == "interpreter":
        found = [c if is_aligned else c._replace(descriptors=False) for c in INTERPRETER]
    elif is_aligned:
        pointers = TensorDescriptor is None and arch.family in ("sm90", "sm100")  # Triton before 3.4
        for limit, configs in TABLES["sm80" if pointers else arch.family][edges is not None]:
            if limit is None or m <= limit:
                found = list(configs)
                break
    else:
        _say_unaligned(k)
        found = list(UNALIGNED)
    if edges:
        block = power_of_2(edges[1])
        if block < 32:
            raise Unsupported(f"scale blocks of {edges[1]} columns are narrower than one int8 product (32)")
        return list(dict.fromkeys(c._replace(block_k=min(c.block_k, block), split_k=1) for c in found))
    found = [c for c in found if c.split_k == 1 or c.split_k * m * n * 4 <= MAX_WORKSPACE]
    tiles: list[TileConfig | GluonConfig] = [*found]
    if is_aligned and TensorDescriptor is not None:
        tiles += gluon_tiles(arch.family, shape)
    if not plain:
        tiles = [t for t in tiles if t.block_m * t.block_n <= MOST_SUMS * t.num_warps]
    with_library = is_aligned and arch.family not in ("interpreter", "xpu") and n % 8 == 0 and _parts(m, n)
    return [*tiles, IntMM()] if with_library else [*tiles]


@lru_cache(maxsize=64)
def _say_unaligned(k: int) -> None:
    _log.warning("an int8 product with K = %d reads single bytes: rows are not on 16-byte boundaries", k)


def product(
    engine: Engine, a: Operand, b: Operand, out: Operand, epilogue: Epilogue, edges=None
) -> list[Step]:
    """Return the steps of one engine: a int8 [M, K], b int8 [N, K] into contiguous out [M, N]."""
    if isinstance(engine, IntMM):
        m, n = out.shape
        parts = _parts(m, n)
        partial = empty((1, max(stop - start for start, stop in parts), n), torch.int32, a.device)
        return [
            step
            for rows in parts
            for step in (
                Call(_int_mm, a, b, partial, *rows),
                launch_finish(partial, out, epilogue, rows=rows),
            )
        ]
    if isinstance(engine, GluonConfig):
        return [launch_gluon(engine, a, b, out, epilogue)]
    if engine.split_k > 1:
        partial = empty((engine.split_k, *out.shape), torch.int32, a.device)
        return [launch_product(engine, a, b, partial, epilogue), launch_finish(partial, out, epilogue)]
    return [launch_product(engine, a, b, out, epilogue, edges)]


def _parts(m: int, n: int) -> list[tuple[int, int]]:
    """Return the rows (first, last exclusive) that ``torch._int_mm`` takes at a time; none where it cannot.

    It wants more than 16, so they are shared out evenly.
    """
    count = cdiv(m, max(1, MAX_WORKSPACE // (4 * n)))
    edges = [m * i // count for i in range(count + 1)]
    return list(pairwise(edges)) if m // count > 16 else []


def _int_mm(a: torch.Tensor, b: torch.Tensor, partial: torch.Tensor, start: int, stop: int) -> None:
    torch._int_mm(a[start:stop].contiguous(), b.t(), out=partial[0, : stop - start])


def operands(a_scale, b_scale, bias, activation, rows: int, blockwise: bool) -> Epilogue:
    """Return the epilogue of checked arguments: float32 scales, by rows and blocks if block-wise."""
    a_scale, b_scale = a_scale.float().contiguous(), b_scale.float().contiguous()
    if blockwise:
        a_scale = a_scale.reshape(rows, -1)
    return Epilogue(a_scale, b_scale, None if bias is None else bias.contiguous(), activation)


@planned
def int8_mm(a, b, a_scale, b_scale, bias=None, out_dtype=torch.bfloat16, output_activation=None) -> Plan:
    """Plan `kernels.int8_mm`: one launch, two with split-K or ``torch._int_mm``."""
    _check(a, b, a_scale, b_scale, bias)
    activations.check(output_activation)
    arch = arch_of(a.device)
    if not arch.int8:
        raise Unsupported(f"{arch.name} has hardly any int8 tensor-core throughput (sm_103)")
    rows = rows_of(a)
    (m, k), n = rows.shape, b.shape[0]
    out = empty((m, n), out_dtype, a.device)
    result = out.reshape(*a.shape[:-1], n)
    if not out.numel():
        return Plan([], result)
    edges = granularity(n, k, b_scale) if is_blockwise(b, b_scale) else None
    epilogue = operands(a_scale, b_scale, bias, output_activation, m, edges is not None)
    found = candidates(arch, (m, n, k), aligned(rows) and aligned(b), edges, output_activation is None)

    def steps(engine):
        return product(engine, rows, b, out, epilogue, edges)

    key = "int8_mm m{} n{} k{} {} {}", bucket(m), n, k, out_dtype, "blocks" if edges else "rows"
    return Plan([Choice(arch, key, found, steps, a.device)], result)
