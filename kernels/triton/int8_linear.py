"""The fused INT8 linear: one launch quantizes (and rotates) the activations, one multiplies."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .. import activations
from .._library import Unsupported
from ..int8_linear import FEW_ROWS, check_input_scale, check_prequantized, check_weight
from ..int8_mm import is_blockwise
from ..quantize_activations import block_of, check
from ..scales import granularity
from ._arch import arch_of
from ._operands import Operand, aligned, empty, rows_of
from ._plan import Call, Choice, Plan
from ._planned import planned
from ._tuning import bucket
from .blockwise import quantize_blocks
from .dequantize import dequantize
from .int8_mm import Engine, candidates, operands, product
from .rowwise import quantize_rows
from .weight_only import multiply

SLICE = 32 << 20
"""Weights dequantized at once by the float engine: bounds its memory to 64 MiB of bfloat16."""


class FloatLinear(NamedTuple):
    """Dequantize and call the float linear: only where it was *measured* faster by more than 5 %.

    On some GPUs the int8 product cannot win; where it was cut (sm_103) this is the only engine.
    Its result lacks the activations' rounding noise; nothing else differs.
    """

    label: str = "dequantize + F.linear"
    handicap: float = 1.05


class WeightOnly(NamedTuple):
    """Float activations times int8 weights, for few rows, where *measured* faster by more than 5 %.

    Without a rotation one launch instead of two. Its result lacks the activations' rounding noise.
    """

    label: str = "weight-only"
    handicap: float = 1.05


class Floats(NamedTuple):
    """What the engines read that multiply floats: rows [M, K], [M, 2 K] for a gated activation.

    weight_only: whether `WeightOnly` may read them, which knows neither activations nor static scales.
    """

    rows: Operand
    rotation: int
    activation: str | None
    weight_only: bool


@planned
def int8_linear(
    x,
    qweight,
    weight_scale,
    bias=None,
    rotation=0,
    input_scale=None,
    out_dtype=None,
    input_activation=None,
    output_activation=None,
) -> Plan:
    """Plan `kernels.int8_linear`: two launches; one to three where another engine measured faster."""
    check_weight(x, qweight, weight_scale, bias, rotation, input_activation)
    check_input_scale(x, qweight, weight_scale, input_scale)
    out_dtype, block = out_dtype or x.dtype, block_of(qweight, weight_scale)
    if input_scale is not None:
        input_scale = input_scale.to(x.device, torch.float32)
    rows = rows_of(x)

    def quantized():
        return _quantize(rows, rotation, input_scale, input_activation, block)

    kind = "int8_linear m{} n{} k{} {} {} " + ("blocks{} {} {}" if block else "rotation{} {} {}")
    n, k = qweight.shape
    key = kind, bucket(rows.shape[0]), n, k, x.dtype, out_dtype, rotation, input_activation, output_activation
    floats = Floats(rows, rotation, input_activation, input_activation is None and input_scale is None)
    weight = qweight, weight_scale, bias
    plan = _product(key, quantized, floats, weight, rows.shape[0], out_dtype, output_activation)
    return plan._replace(results=plan.outputs[0].reshape(*x.shape[:-1], n))


@planned
def int8_linear_prequantized(
    q,
    q_scale,
    qweight,
    weight_scale,
    bias=None,
    out_dtype=torch.bfloat16,
    output_activation=None,
    x=None,
    rotation=0,
) -> Plan:
    """Plan `kernels.int8_linear_prequantized`: one launch, two with split-K or ``torch._int_mm``."""
    check_prequantized(q, q_scale, qweight, weight_scale, bias, x, rotation)
    rows, (n, k) = rows_of(q), qweight.shape
    kind = "int8_linear_prequantized m{} n{} k{} {} {} {} rotation{} {}"
    blocks = "blocks" if block_of(qweight, weight_scale) else "rows"
    source = None if x is None else x.dtype
    key = kind, bucket(rows.shape[0]), n, k, source, out_dtype, blocks, rotation, output_activation
    floats = None if x is None else Floats(rows_of(x), rotation, None, False)
    weight = qweight, weight_scale, bias
    plan = _product(
        key, lambda: Plan([], (rows, q_scale)), floats, weight, rows.shape[0], out_dtype, output_activation
    )
    return plan._replace(results=plan.outputs[0].reshape(*q.shape[:-1], n))


@planned
def quantize_activations(x, rotation=0, input_scale=None, input_activation=None, block=0) -> Plan:
    """Plan `kernels.quantize_activations`: one launch."""
    check(x, rotation, input_scale, input_activation, block)
    return _quantize(x, rotation, input_scale, input_activation, block)


def _quantize(x: Operand, rotation, input_scale, input_activation, block: int) -> Plan:
    if block:
        return quantize_blocks(x, 1, block, input_activation)
    return quantize_rows(x, rotation, input_scale, input_activation)


def _product(key, quantized, floats: Floats | None, weight, m: int, out_dtype, activation) -> Plan:
    """Plan [M, N] of a checked weight by the engine that `key` was measured for.

    quantized(): the plan of q [M, K] and its scale, which the engines that multiply floats do without.
    """
    qweight, weight_scale, bias = weight
    activations.check(activation)
    device, (n, k) = qweight.device, qweight.shape
    arch = arch_of(device)
    edges = granularity(n, k, weight_scale) if is_blockwise(qweight, weight_scale) else None
    out = empty((m, n), out_dtype, device)
    if not out.numel():
        return Plan([], out)
    weight_scale = weight_scale.float().contiguous()
    bias = None if bias is None else bias.contiguous()
    found: list[Engine | FloatLinear | WeightOnly] = []
    if arch.int8:
        found += candidates(arch, (m, n, k), k % 16 == 0 and aligned(qweight), edges, activation)
    if floats is not None:
        same = floats.rows.dtype == out_dtype != torch.float32
        if not arch.int8 or (same and arch.family != "interpreter"):
            found.append(FloatLinear())
            if m <= FEW_ROWS and floats.weight_only:
                found.append(WeightOnly())
    if not found:
        raise Unsupported(f"{arch.name} has hardly any int8 tensor-core throughput (sm_103)")

    def steps(engine):
        if isinstance(engine, FloatLinear):
            of = qweight, weight_scale, bias, floats.rotation, out, floats.activation, activation
            return [Call(_float_linear, floats.rows, *of)]
        if isinstance(engine, WeightOnly):
            return multiply(floats.rows, qweight, weight_scale, bias, floats.rotation, out, activation)
        before = quantized()
        q, scale = before.outputs
        epilogue = operands(scale, weight_scale, bias, activation, m, edges is not None)
        return [*before.steps, *product(engine, q, qweight, out, epilogue, edges)]

    return Plan([Choice(arch, key, found, steps, device)], out)


def _float_linear(rows, qweight, weight_scale, bias, rotation, out, input_activation, output_activation):
    """The float linear on slices of the dequantized, un-rotated weight."""
    n, k = qweight.shape
    x = activations.apply(input_activation, rows).to(rows.dtype)
    edge = granularity(n, k, weight_scale)[0]
    step = max(edge, SLICE // k // edge * edge)
    for start in range(0, n, step):
        stop = min(start + step, n)
        scale = weight_scale
        if weight_scale.numel() != 1:
            scale = weight_scale[start // edge : -(-stop // edge)]
        weight = dequantize(qweight[start:stop], scale, rows.dtype, rotation)
        part = None if bias is None else bias[start:stop].to(rows.dtype)
        y = F.linear(x, weight, part)
        out[:, start:stop] = activations.apply(output_activation, y)
