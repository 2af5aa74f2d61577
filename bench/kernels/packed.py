"""Time the fused linear of packed weights (W4A8, W6A8, int4 rows) beside the same layer's INT8 linear."""

from functools import partial

import torch
from checks import Red
from report import Row

from convert_to_quant import kernels
from convert_to_quant.quant.layouts.asym_w4a8_int8 import AsymW4A8Int8Layout
from convert_to_quant.quant.layouts.convrot_w4a4 import TensorCoreConvRotW4A4Layout

BYTES = {"w4a8": 0.5625, "w6a8": 0.8125, "int4": 0.5}
"""Of one weight, scales included."""


def quantize(weight: torch.Tensor, kind: str, rotation: int) -> tuple:
    """Return (qweight, bits, row scale, group scales, codebook) of a float weight [N, K]."""
    if kind == "int4":
        q, params = TensorCoreConvRotW4A4Layout.quantize(weight, convrot_groupsize=rotation)
        return q, 4, params["scale"], None, None
    bits = 4 if kind == "w4a8" else 6
    q, params = AsymW4A8Int8Layout.quantize(weight, bits=bits, convrot_groupsize=rotation)
    return q, bits, params["s_channel"], params["s_rel"].view(torch.uint8), params.get("codebook")


def linears(bench, n: int, k: int, rotation: int, rows: tuple[int, ...]) -> None:
    """Time every kind at one weight and every M; Red where the integers are not the eager twin's."""
    weight, bias = bench.random(n, k) * 0.02, bench.random(n)
    int8 = kernels.quantize_rowwise(weight, rotation)
    for kind in BYTES:
        q, bits, scale, group_scale, codebook = quantize(weight, kind, rotation)
        _check(q, bits, group_scale, codebook)
        moved = q.numel() + (0 if group_scale is None else group_scale.numel())
        call = partial(kernels.decode, q, bits, group_scale, codebook)
        bench.memory_bound("Decode", f"decode {kind}", f"{n}x{k}", moved + n * k, call)
        for m in rows:
            x = bench.random(m, k)
            rival = bench.timer(partial(kernels.int8_linear, x, *int8, bias, rotation)).median
            call = partial(kernels.packed_linear, x, q, bits, scale, group_scale, codebook, bias, rotation)
            time = bench.timer(call)
            bytes_moved = moved + 2 * m * k + 2 * m * n
            floor = bytes_moved / bench.bandwidth / 1e3
            if bench.tops:
                quantized = 3 * m * k / bench.bandwidth / 1e3
                floor = max(floor, quantized + 2 * m * n * k / bench.tops / 1e6)
            operations, gbs = 2 * m * n * k / time.median / 1e6, bytes_moved / time.median / 1e3
            row = f"packed_linear {kind}", f"{m}x{n}x{k}", time, operations, gbs, floor
            bench.rows.append(Row("Packed linear", *row, {"int8_linear": rival}))


def _check(q, bits, group_scale, codebook) -> None:
    """Refuse integers that differ from the twin's: the product is the INT8 one of them."""
    got = kernels.decode(q, bits, group_scale, codebook)
    with kernels.force_eager():
        want = kernels.decode(q, bits, group_scale, codebook)
    if not torch.equal(got, want):
        raise Red(f"decode, {bits} bits: {int((got != want).sum())} integers differ from the twin's")
