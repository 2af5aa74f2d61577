"""The fused linear of packed weights: one launch quantizes the activations, one decodes and multiplies."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .. import activations
from .._library import Unsupported
from ..decode import Packed
from ..packed_linear import check, check_prequantized
from ._arch import Arch, arch_of
from ._epilogue import Epilogue, launch_finish
from ._gemm import TileConfig
from ._gluon import GluonConfig
from ._launch import TensorDescriptor
from ._operands import Operand, empty, rows_of
from ._packed_gemm import PackedWeight, launch_packed
from ._plan import Choice, Plan, Step
from ._planned import planned
from ._tuning import bucket
from .decode import decoded, prepared, takes
from .int8_mm import MAX_WORKSPACE, MOST_SUMS, IntMM, candidates, operands, product
from .rowwise import quantize_rows


class Decoded(NamedTuple):
    """Decode the whole weight first, then multiply int8: it is decoded once, not once per tile of rows.

    Takes memory of N x K bytes, at most MAX_WORKSPACE, which mostly stays in L2.
    """

    engine: TileConfig | IntMM

    @property
    def label(self) -> str:
        return f"decoded, {self.engine.label}"

    @property
    def handicap(self) -> float:
        return 1.0


Engine = TileConfig | Decoded

# (largest M, candidates); the first is the static model's choice, as in `int8_mm`. Up to 16 rows the packed
# bytes alone count: small tiles, many of them in flight.
_FEW = (
    (16, (
        TileConfig(16, 64, 128, 4, 4),
        TileConfig(16, 32, 128, 2, 4),
        TileConfig(16, 64, 128, 4, 4, split_k=4),
    )),
    (64, (
        TileConfig(64, 64, 128, 4, 3),
        TileConfig(64, 64, 128, 4, 3, split_k=4),
    )),
)  # fmt: skip
# A weight is decoded once per tile of rows: 256 of them halve its share of the instructions.
POINTERS = (
    *_FEW,
    (512, (
        TileConfig(128, 128, 64, 8, 3),
        TileConfig(64, 128, 128, 8, 3),
    )),
    (None, (
        TileConfig(256, 128, 64, 8, 3),
        TileConfig(128, 128, 128, 8, 3),
    )),
)  # fmt: skip
SM90 = (
    *_FEW,
    (512, (
        TileConfig(128, 128, 128, 8, 3, descriptors=True),
        TileConfig(64, 64, 128, 4, 3),
    )),
    (None, (
        TileConfig(256, 128, 128, 8, 3, descriptors=True),
        TileConfig(128, 128, 128, 8, 3, descriptors=True),
    )),
)  # fmt: skip
# 256 x 128 has 255 registers here.
SM100 = (*SM90[:3], (None, SM90[3][1][1:]))
# No byte permute by name: what takes a table or six bits is decoded by some 20 instructions a weight.
AMD = (
    (16, (TileConfig(16, 64, 64, 4, 2),)),
    (None, (TileConfig(64, 64, 64, 4, 2),)),
)
TABLES = {
    "sm80": POINTERS,
    "sm89": POINTERS,
    "sm90": SM90,
    "sm100": SM100,
    "cdna": AMD,
    "rdna": AMD,
    "xpu": AMD,
}
INTERPRETER = (TileConfig(32, 64, 128, 4, 1),)


def engines(arch: Arch, m: int, shape: Packed, bits: int, activation: str | None = None) -> list[Engine]:
    """Return what can serve a product of M rows, the static model's choice first."""
    n, k, _ = shape
    if arch.family == "interpreter":
        return [*INTERPRETER]
    tiles: Sequence[TileConfig] = next(t for limit, t in TABLES[arch.family] if limit is None or m <= limit)
    if TensorDescriptor is None:  # Triton before 3.4
        tiles = [t._replace(descriptors=False) for t in tiles]
    fused = [t for t in tiles if t.split_k == 1 or t.split_k * m * n * 4 <= MAX_WORKSPACE]
    if activation is not None:
        fused = [t for t in fused if t.block_m * t.block_n <= MOST_SUMS * t.num_warps]
    if m <= 64 or n * k > MAX_WORKSPACE:
        return [*fused]
    whole = [
        e
        for e in candidates(arch, (m, n, k), True, None, activation is None)
        if not isinstance(e, GluonConfig)
    ]
    first = [Decoded(e) for e in dict.fromkeys((whole[0], whole[-1]))]
    return [*first, *fused] if _decodes_first(arch, m, shape, bits) else [*fused, *first]


def _decodes_first(arch: Arch, m: int, shape: Packed, bits: int) -> bool:
    """Return whether to decode the whole weight first, by the machine code (`bench/kernels --static`).

    On sm_90 a 256-row tile at 6 bits takes 135 % of its products' time to issue; at 4 bits with a table it
    takes 152 % in shared memory, int8 tiles 112 %, and the decoding is worth 15 % of 1024 rows. On sm_100
    tiles have 128 rows and products take half the time. Elsewhere decoding hides behind the products.
    """
    if arch.family == "sm90":
        return m > (256 if bits == 6 else 1024) and shape.group > 0
    return arch.family == "sm100" and m > 256


def multiply(engine: Engine, a: Operand, weight: PackedWeight, out, epilogue: Epilogue, arch) -> list[Step]:
    """Return the steps of one engine: a int8 [M, K] times a packed weight into contiguous out [M, N]."""
    if isinstance(engine, Decoded):
        launch, whole = decoded(*weight, arch)
        return [launch, *product(engine.engine, a, whole, out, epilogue)]
    if engine.split_k > 1:
        partial = empty((engine.split_k, *out.shape), torch.int32, a.device)
        first = launch_packed(engine, a, weight, partial, epilogue, arch)
        return [first, launch_finish(partial, out, epilogue)]
    return [launch_packed(engine, a, weight, out, epilogue, arch)]


@planned
def packed_linear(
    x,
    qweight,
    bits,
    weight_scale,
    group_scale=None,
    codebook=None,
    bias=None,
    rotation=0,
    input_scale=None,
    output_activation=None,
) -> Plan:
    """Plan `kernels.packed_linear`: two launches, a small one before them where codes have a table."""
    shape = check(x, qweight, bits, weight_scale, group_scale, codebook, bias, rotation, input_scale)
    if input_scale is not None:
        input_scale = input_scale.to(x.device, torch.float32)
    quantized = quantize_rows(x, rotation, input_scale)
    weight = qweight, bits, weight_scale, group_scale, codebook, bias
    q, q_scale = quantized.outputs
    then = _multiplied(q, q_scale, *weight, x.dtype, output_activation, shape)
    return Plan([*quantized.steps, *then.steps], then.results)


@planned
def packed_linear_prequantized(
    q,
    q_scale,
    qweight,
    bits,
    weight_scale,
    group_scale=None,
    codebook=None,
    bias=None,
    out_dtype=torch.bfloat16,
    output_activation=None,
) -> Plan:
    """Plan `kernels.packed_linear_prequantized`: one launch; a small one first where codes have a table."""
    shape = check_prequantized(q, q_scale, qweight, bits, weight_scale, group_scale, codebook, bias)
    weight = qweight, bits, weight_scale, group_scale, codebook, bias
    return _multiplied(q, q_scale, *weight, out_dtype, output_activation, shape)


def _multiplied(
    q, q_scale, qweight, bits, weight_scale, group_scale, codebook, bias, out_dtype, activation, shape
) -> Plan:
    """Plan the product of checked operands."""
    activations.check(activation)
    arch = arch_of(q.device)
    if not arch.int8:
        raise Unsupported(f"{arch.name} has hardly any int8 tensor-core throughput (sm_103)")
    takes(qweight, group_scale, shape)
    rows, (n, k, group) = rows_of(q), shape
    m = rows.shape[0]
    out = empty((m, n), out_dtype, q.device)
    result = out.reshape(*q.shape[:-1], n)
    if not out.numel():
        return Plan([], result)
    before, table = prepared(bits, group_scale, codebook, q.device)
    weight = PackedWeight(qweight, bits, group_scale, table, shape)
    epilogue = operands(q_scale, weight_scale.reshape(n, 1), bias, activation, m, False)

    def steps(engine):
        return multiply(engine, rows, weight, out, epilogue, arch)

    kind = "packed_linear m{} n{} k{} {} bits{} group{} {}"
    key = kind, bucket(m), n, k, out_dtype, bits, group, activation
    found = engines(arch, m, shape, bits, activation)
    return Plan([*before, Choice(arch, key, found, steps, q.device)], result)
