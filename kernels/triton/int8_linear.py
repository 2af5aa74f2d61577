"""The fused INT8 linear: one launch quantizes (and rotates) the activations, one multiplies."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .. import activations
from ..int8_linear import check_input_scale, check_weight
from ..int8_mm import is_blockwise
from ..scales import granularity
from ._arch import arch_of
from ._operands import aligned, empty, rows_of
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


FEW_ROWS = 16
"""Rows up to which the weights' bytes alone count, and one launch less is what can be won."""


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
    activations.check(output_activation)
    arch = arch_of(x.device)
    n, k = qweight.shape
    out_dtype = out_dtype or x.dtype
    rows = rows_of(x)
    m = rows.shape[0]
    edges = None
    if is_blockwise(qweight, weight_scale):
        edges = granularity(n, k, weight_scale)
    out = empty((m, n), out_dtype, x.device)
    result = out.reshape(*x.shape[:-1], n)
    if not out.numel():
        return Plan([], result)
    weight_scale = weight_scale.float().contiguous()
    bias = None if bias is None else bias.contiguous()
    if input_scale is not None:
        input_scale = input_scale.to(x.device, torch.float32)
    is_aligned = k % 16 == 0 and aligned(qweight)
    found: list[Engine | FloatLinear | WeightOnly] = []
    if arch.int8:
        found += candidates(arch, (m, n, k), is_aligned, edges, output_activation)
    if not arch.int8 or (x.dtype == out_dtype != torch.float32 and arch.family != "interpreter"):
        found.append(FloatLinear())
        if m <= FEW_ROWS and input_activation is None and input_scale is None:
            found.append(WeightOnly())

    weight = qweight, weight_scale, bias, rotation

    def steps(engine):
        if isinstance(engine, FloatLinear):
            return [Call(_float_linear, rows, *weight, out, input_activation, output_activation)]
        if isinstance(engine, WeightOnly):
            return multiply(rows, *weight, out, output_activation)
        if edges:
            quantized = quantize_blocks(rows, 1, 1 << (edges[1] - 1).bit_length(), input_activation)
        else:
            quantized = quantize_rows(rows, rotation, input_scale, input_activation)
        q, scale = quantized.outputs
        epilogue = operands(scale, weight_scale, bias, output_activation, m, edges is not None)
        return [*quantized.steps, *product(engine, q, qweight, out, epilogue, edges)]

    kind = "int8_linear m{} n{} k{} {} {} " + ("blocks{} {} {}" if edges else "rotation{} {} {}")
    key = kind, bucket(m), n, k, x.dtype, out_dtype, rotation, input_activation, output_activation
    return Plan([Choice(arch, key, found, steps, x.device)], result)


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
