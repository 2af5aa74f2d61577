"""Time the conversions and the linear of FP8, MXFP8 and NVFP4 weights, beside cuBLAS in bfloat16."""

from functools import partial

import torch
import torch.nn.functional as F
from checks import Red
from report import Row

from convert_to_quant import kernels
from convert_to_quant.formats import MXFP8, NVFP4, Float8E4M3
from convert_to_quant.quant.layouts import weight_layout

FORMS = {"fp8": Float8E4M3(), "mxfp8": MXFP8(), "nvfp4": NVFP4()}


def linears(bench, n: int, k: int, rows: tuple[int, ...]) -> None:
    """Time every kind at one weight and every M; Red where the floats are not the eager twin's."""
    weight, bias = bench.random(n, k) * 0.02, bench.random(n)
    for name, form in FORMS.items():
        if form.why_not((n, k)):
            continue
        layout = weight_layout(form.layout)
        stored = layout.stored(*layout.quantize(weight, form))
        _check(stored)
        moved = sum(t.numel() for t in (stored.q, stored.block_scale) if t is not None)
        call = partial(kernels.dequantize_floats, *stored, torch.bfloat16)
        bench.memory_bound("Dequantize", f"dequantize {name}", f"{n}x{k}", moved + 2 * n * k, call)
        for m in rows:
            x = bench.random(m, k)
            rival = bench.timer(partial(F.linear, x, weight, bias)).median
            time = bench.timer(partial(kernels.float_linear, x, *stored, bias))
            bytes_moved = moved + 2 * m * k + 2 * m * n
            rates = 2 * m * n * k / time.median / 1e6, bytes_moved / time.median / 1e3
            row = f"float_linear {name}", f"{m}x{n}x{k}", time, *rates, bytes_moved / bench.bandwidth / 1e3
            bench.rows.append(Row("Linear of small floats", *row, {"bf16": rival}))
    x = bench.random(max(rows), k)
    call = partial(kernels.quantize_float8, x)
    bench.memory_bound("Quantize", "quantize_float8", f"{max(rows)}x{k}", 5 * x.numel(), call)


def _check(stored) -> None:
    """Refuse floats that differ from the twin's in any bit."""
    got = kernels.dequantize_floats(*stored, torch.bfloat16)
    with kernels.force_eager():
        want = kernels.dequantize_floats(*stored, torch.bfloat16)
    if not torch.equal(got, want):
        raise Red(
            f"dequantize_floats, {stored.kind}: {int((got != want).sum())} values differ from the twin's"
        )
