"""The fused INT8 linear: one launch quantizes (and rotates) the activations, one multiplies."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .. import activations
from .. import norm as norms
from .. import residual as residuals
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
from .rowwise import Norm, quantize_rows
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

    weight_only: whether `WeightOnly` may read them, which knows no activations, norms or static scales.
    """

    rows: Operand
    rotation: int
    activation: str | None
    weight_only: bool
    norm: Norm | None = None


class Output(NamedTuple):
    """What becomes of the product: an activation, then a residual [M, N] and its scale [N], and its type."""

    dtype: torch.dtype
    activation: str | None
    residual: Operand | None
    residual_scale: Operand | None

    @property
    def plain(self) -> bool:
        """Whether there is nothing to be done but the scales and the bias."""
        return self.activation is None and self.residual is None


def _output(dtype, activation, residual, residual_scale, rows: int, n: int, leading) -> Output:
    """Return the checked output of `rows` rows; leading: the result's shape but for its last axis."""
    activations.check(activation)
    residuals.check(residual, residual_scale, (*leading, n))
    if residual is not None:
        residual = residual.contiguous().reshape(rows, n)
    if residual_scale is not None:
        residual_scale = residual_scale.contiguous()
    return Output(dtype, activation, residual, residual_scale)


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
    norm_weight=None,
    norm_eps=1e-6,
    residual=None,
    residual_scale=None,
) -> Plan:
    """Plan `kernels.int8_linear`: two launches; one to three where another engine measured faster."""
    check_weight(x, qweight, weight_scale, bias, rotation, input_activation)
    check_input_scale(x, qweight, weight_scale, input_scale)
    (n, k), block = qweight.shape, block_of(qweight, weight_scale)
    norms.check(norm_weight, norm_eps, k, input_activation, block)
    if input_scale is not None:
        input_scale = input_scale.to(x.device, torch.float32)
    rows, norm = rows_of(x), _norm(norm_weight, norm_eps)
    m = rows.shape[0]
    out_dtype = out_dtype or x.dtype
    output = _output(out_dtype, output_activation, residual, residual_scale, m, n, x.shape[:-1])

    def quantized():
        return _quantize(rows, rotation, input_scale, input_activation, block, norm)

    kind = "int8_linear m{} n{} k{} {} {} " + ("blocks{} {} {} {}" if block else "rotation{} {} {} {}")
    before, added = input_activation if norm is None else "norm", _added(output)
    key = kind, bucket(m), n, k, x.dtype, out_dtype, rotation, before, output_activation, added
    exact = input_activation is None and input_scale is None and norm is None
    floats = Floats(rows, rotation, input_activation, exact, norm)
    plan = _product(key, quantized, floats, (qweight, weight_scale, bias), m, output)
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
    residual=None,
    residual_scale=None,
) -> Plan:
    """Plan `kernels.int8_linear_prequantized`: one launch, two with split-K or ``torch._int_mm``."""
    check_prequantized(q, q_scale, qweight, weight_scale, bias, x, rotation)
    rows, (n, k) = rows_of(q), qweight.shape
    m = rows.shape[0]
    output = _output(out_dtype, output_activation, residual, residual_scale, m, n, q.shape[:-1])
    kind = "int8_linear_prequantized m{} n{} k{} {} {} {} rotation{} {} {}"
    blocks = "blocks" if block_of(qweight, weight_scale) else "rows"
    source, added = None if x is None else x.dtype, _added(output)
    key = kind, bucket(m), n, k, source, out_dtype, blocks, rotation, output_activation, added
    floats = None if x is None else Floats(rows_of(x), rotation, None, False)
    quantized = Plan([], (rows, q_scale))
    plan = _product(key, lambda: quantized, floats, (qweight, weight_scale, bias), m, output)
    return plan._replace(results=plan.outputs[0].reshape(*q.shape[:-1], n))


@planned
def quantize_activations(
    x, rotation=0, input_scale=None, input_activation=None, block=0, norm_weight=None, norm_eps=1e-6
) -> Plan:
    """Plan `kernels.quantize_activations`: one launch."""
    check(x, rotation, input_scale, input_activation, block, norm_weight, norm_eps)
    return _quantize(x, rotation, input_scale, input_activation, block, _norm(norm_weight, norm_eps))


def _quantize(x: Operand, rotation, input_scale, input_activation, block: int, norm: Norm | None) -> Plan:
    if block:
        return quantize_blocks(x, 1, block, input_activation)
    return quantize_rows(x, rotation, input_scale, input_activation, norm)


def _norm(weight: Operand | None, eps: float) -> Norm | None:
    return None if weight is None else Norm(weight.contiguous(), eps)


def _added(output: Output) -> str | None:
    """Return what a tuning key says of a residual."""
    return None if output.residual is None else "residual"


def _product(key, quantized, floats: Floats | None, weight, m: int, output: Output) -> Plan:
    """Plan [M, N] of a checked weight by the engine that `key` was measured for.

    quantized(): the plan of q [M, K] and its scale, which the engines that multiply floats do without.
    """
    qweight, weight_scale, bias = weight
    device, (n, k) = qweight.device, qweight.shape
    arch = arch_of(device)
    edges = granularity(n, k, weight_scale) if is_blockwise(qweight, weight_scale) else None
    out = empty((m, n), output.dtype, device)
    if not out.numel():
        return Plan([], out)
    weight_scale = weight_scale.float().contiguous()
    bias = None if bias is None else bias.contiguous()
    found: list[Engine | FloatLinear | WeightOnly] = []
    if arch.int8:
        found += candidates(arch, (m, n, k), k % 16 == 0 and aligned(qweight), edges, output.plain)
    if floats is not None:
        same = floats.rows.dtype == output.dtype != torch.float32
        if not arch.int8 or (same and arch.family != "interpreter"):
            found.append(FloatLinear())
            if m <= FEW_ROWS and floats.weight_only:
                found.append(WeightOnly())
    if not found:
        raise Unsupported(f"{arch.name} has hardly any int8 tensor-core throughput (sm_103)")

    def steps(engine):
        if isinstance(engine, FloatLinear):
            of = (
                qweight,
                weight_scale,
                bias,
                floats.rotation,
                out,
                floats.activation,
                *(floats.norm or (None, 0)),
            )
            return [Call(_float_linear, floats.rows, *of, *output[1:])]
        if isinstance(engine, WeightOnly):
            return multiply(floats.rows, qweight, weight_scale, bias, floats.rotation, out, *output[1:])
        before = quantized()
        q, scale = before.outputs
        epilogue = operands(scale, weight_scale, bias, output.activation, m, edges is not None)
        epilogue = epilogue._replace(residual=output.residual, residual_scale=output.residual_scale)
        return [*before.steps, *product(engine, q, qweight, out, epilogue, edges)]

    return Plan([Choice(arch, key, found, steps, device)], out)


def _float_linear(
    rows,
    qweight,
    weight_scale,
    bias,
    rotation,
    out,
    input_activation,
    norm_weight,
    norm_eps,
    output_activation,
    residual,
    residual_scale,
):
    """The float linear on slices of the dequantized, un-rotated weight."""
    n, k = qweight.shape
    x = activations.apply(input_activation, norms.apply(rows, norm_weight, norm_eps)).to(rows.dtype)
    edge = granularity(n, k, weight_scale)[0]
    step = max(edge, SLICE // k // edge * edge)
    for start in range(0, n, step):
        stop = min(start + step, n)
        scale = weight_scale
        if weight_scale.numel() != 1:
            scale = weight_scale[start // edge : -(-stop // edge)]
        weight = dequantize(qweight[start:stop], scale, rows.dtype, rotation)
        part = None if bias is None else bias[start:stop].to(rows.dtype)
        y = activations.apply(output_activation, F.linear(x, weight, part))
        if residual is not None:
            part = None if residual_scale is None else residual_scale[start:stop]
            y = residuals.add(y.float(), residual[:, start:stop], part, out.dtype)
        out[:, start:stop] = y
