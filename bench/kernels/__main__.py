"""Speed of the kernels on a GPU, next to their floors and their rivals.

    python bench/kernels                 every shape, every M (about an hour on one GPU)
    python bench/kernels --short         five shapes
    python bench/kernels --device cpu --tiny --out DIR   runs the code, measures nothing
    python bench/kernels --static [sm_80 sm_90 ..]       no GPU: bounds from machine code
    python bench/kernels --rows [sm_80 sm_90 ..]         no GPU: the row quantizer's instructions
    python bench/kernels --columns [sm_80 sm_90 ..]      no GPU: LDLQ's instructions

Writes JSON and Markdown to bench/results. Refuses to time an op whose answer is wrong. Columns: "of
floor" is the least possible time over ours; "x RIVAL" is the rival's time over ours; "host µs" is
how long the processor is busy with a call (bench/launch measures it without a GPU).
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import columns
import packed
import quantizers as weight_quantizers
import rows as row_quantizer
import shapes
import small_floats
import static
import torch
from checks import Red, descent, ldlq, linear, quantizer, weight_only
from report import Row, environment, write
from rivals import RIVALS, Missing
from timing import Timer, copy_bandwidth, int8_tops

from convert_to_quant import kernels
from convert_to_quant.quant.algorithms.hessian import factorize
from convert_to_quant.quant.algorithms.ldlq import quantize_with_factor
from convert_to_quant.quant.algorithms.types import QuantizeOptions

RESULTS = Path(__file__).parent.parent / "results"


class Bench:
    """One run: a device, its copy bandwidth and int8 rate, and the rows measured so far."""

    def __init__(self, device: str, rounds: int, copy_bytes: int):
        self.device, self.timer = device, Timer(device, rounds)
        self.machine = environment(device)
        self.bandwidth = copy_bandwidth(self.timer, copy_bytes)
        self.tops = int8_tops(str(self.machine.get("gpu", "")))
        self.rows: list[Row] = []
        self.notes = [f"copy bandwidth measured here: {self.bandwidth:.0f} GB/s (read and write)"]

    def note(self, text: str) -> None:
        """Keep a remark for the record and print it, once."""
        if text not in self.notes:
            self.notes.append(text)
            print(text, file=sys.stderr)

    def random(self, *shape: int) -> torch.Tensor:
        """Return normal bfloat16 numbers on the device."""
        return torch.randn(*shape, device=self.device, dtype=torch.bfloat16)

    def memory_bound(self, section: str, name: str, shape: str, moved: int, call) -> None:
        """Time a call that must move so many bytes, and keep its row."""
        time = self.timer(call)
        floor = moved / self.bandwidth / 1e3
        self.rows.append(Row(section, name, shape, time, gbs=moved / time.median / 1e3, floor=floor))


def quantizers(bench: Bench, m: int, k: int, groups: tuple[int, ...]) -> None:
    """Time every memory-bound op at [m, k]: bytes are one read and one write of what the op must touch."""
    x = bench.random(m, k)
    n, shape = x.numel(), f"{m}x{k}"
    for g in groups:
        quantizer(g, x[:256])
        title = f"quantize_rowwise rotation {g}"
        bench.memory_bound(
            "Quantize", title, shape, 3 * n + 4 * m, lambda g=g: kernels.quantize_rowwise(x, g)
        )
    bench.memory_bound(
        "Quantize", "quantize_tensorwise", shape, 5 * n, lambda: kernels.quantize_tensorwise(x)
    )
    for block in ((128, 128), (1, 128)):
        title = f"quantize_blockwise {block[0]}x{block[1]}"
        bench.memory_bound("Quantize", title, shape, 3 * n, lambda b=block: kernels.quantize_blockwise(x, *b))
    q, scale = kernels.quantize_rowwise(x)
    for g in groups:
        title = f"dequantize rotation {g}"
        call = lambda g=g: kernels.dequantize(q, scale, x.dtype, g)
        bench.memory_bound("Dequantize", title, shape, 3 * n + 4 * m, call)


def linears(bench: Bench, n: int, k: int, rotation: int, rows: tuple[int, ...]) -> None:
    """Time the fused linear at one weight and every M, beside its rivals; weight-only up to M = 16."""
    weight, bias = bench.random(n, k) * 0.02, bench.random(n)
    q, scale = kernels.quantize_rowwise(weight, rotation)
    built = {}
    for name, build in RIVALS.items():
        try:
            built[name] = build(weight, bias, rotation)
        except Missing as why:
            bench.note(f"{name}: {why}")
    for m in rows:
        x = bench.random(m, k)
        linear(q, scale, bias, rotation, x)
        times = _rival_times(bench, built, x, f"M={m} N={n} K={k}")
        fused = partial(kernels.int8_linear, x, q, scale, bias, rotation)
        _linear_row(bench, "int8_linear", (m, n, k), times, fused)
        if m <= 16:
            weight_only(q, scale, bias, rotation, x)
            alone = partial(kernels.int8_weight_only_linear, x, q, scale, bias, rotation)
            _linear_row(bench, "int8_weight_only_linear", (m, n, k), times, alone)


def _rival_times(bench: Bench, built: dict, x: torch.Tensor, shape: str) -> dict[str, float]:
    times = {}
    for name, call in built.items():
        try:
            times[name] = bench.timer(partial(call, x)).median
        except Missing as why:
            bench.note(f"{name} at {shape}: {why}")
        except Exception as error:  # a rival's failure is a fact to report, not the end of the run
            bench.note(f"{name} at {shape}: {type(error).__name__}: {str(error)[:200]}")
    return times


def _linear_row(bench: Bench, name: str, shape: tuple[int, int, int], rivals: dict, call) -> None:
    m, n, k = shape
    time = bench.timer(call)
    moved = n * k + 2 * m * k + 2 * m * n
    quantize = 3 * m * k / bench.bandwidth / 1e3
    floor = moved / bench.bandwidth / 1e3
    if bench.tops and name == "int8_linear":
        floor = max(floor, quantize + 2 * m * n * k / bench.tops / 1e6)
    operations = 2 * m * n * k / time.median / 1e6
    gbs = moved / time.median / 1e3
    shown = f"{m}x{n}x{k}"
    bench.rows.append(Row("Linear", name, shown, time, operations, gbs, floor, dict(rivals)))


def whole_ldlq(bench: Bench, n: int, k: int) -> None:
    """Time LDLQ of a weight, its Hessian given, factorisation included; and blocks of columns alone."""
    x, w = torch.randn(2 * k, k, device=bench.device), torch.randn(n, k, device=bench.device)
    h = kernels.accumulate_hessian_(torch.zeros(k, k, device=bench.device), x) / x.shape[0]
    scale = w.abs().amax(1, keepdim=True) / 127
    width = min(128, k)
    block, square = w[:, :width].contiguous(), torch.linalg.cholesky(h[:width, :width], upper=True)
    q = torch.empty(n, width, dtype=torch.int8, device=bench.device)
    ldlq(q, block, square, scale)
    time = bench.timer(lambda: kernels.ldlq_(q, block, square, scale))
    bench.rows.append(Row("LDLQ", f"ldlq_, {width} columns", f"{n}x{k}", time))
    corner = h[:width, :width].contiguous()
    gradient = (block - q * scale) @ corner
    descent(q, gradient, corner, scale)
    time = bench.timer(lambda: kernels.descend_(q, gradient, corner, scale))
    bench.rows.append(Row("LDLQ", f"descend_, {width} columns", f"{n}x{k}", time))
    options = QuantizeOptions("ldlq")

    def whole():
        quantize_with_factor(w, factorize(lambda: h.clone(), options), scale, options)

    bench.rows.append(Row("LDLQ", "whole weight, Hessian given", f"{n}x{k}", bench.timer(whole)))
    bench.rows.append(
        Row(
            "LDLQ",
            "accumulate_hessian_",
            f"{2 * k}x{k}",
            bench.timer(lambda: kernels.accumulate_hessian_(h, x)),
        )
    )


def main() -> int:
    """Run the command line; the exit code is 1 when an op's answer was wrong."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--rounds", type=int, default=25, help="timed calls per measurement")
    arguments.add_argument("--short", action="store_true", help="five weight shapes")
    arguments.add_argument("--tiny", action="store_true", help="toy shapes: exercises the code only")
    arguments.add_argument("--out", type=Path, default=RESULTS)
    arguments.add_argument("--static", nargs="*", choices=static.TARGETS, help="bounds of the tiles; no GPU")
    arguments.add_argument("--rows", nargs="*", choices=static.TARGETS, help="its instructions; no GPU")
    arguments.add_argument("--columns", nargs="*", choices=static.TARGETS, help="LDLQ's instructions; no GPU")
    given = arguments.parse_args()
    if given.static is not None:
        static.show(given.static or static.TARGETS)
        print()
        weight_quantizers.show(given.static or static.TARGETS)
        return 0
    if given.rows is not None:
        row_quantizer.show(given.rows or static.TARGETS)
        return 0
    if given.columns is not None:
        columns.show(given.columns or static.TARGETS)
        return 0
    table, rows, big, ldlq_shapes = shapes.LINEARS, shapes.M, ((16384, 3072), (4096, 12288)), shapes.LDLQ
    if given.short:
        table = tuple(row for row in table if row[:2] in shapes.SHORT)
    if given.tiny:
        table, rows, big, ldlq_shapes = shapes.TINY, (1, 20), ((32, 1024),), ((16, 64),)
    bench = Bench(given.device, 2 if given.tiny else given.rounds, 1 << 20 if given.tiny else 1 << 30)
    status = 0
    jobs = [(quantizers, (m, k, (0, 16, 64, 256, 1024))) for m, k in big]
    jobs += [(linears, (n, k, rotation, rows)) for n, k, rotation, _ in table]
    jobs += [(packed.linears, (n, k, g, rows)) for n, k, g, _ in table if k % 64 == 0]
    jobs += [(small_floats.linears, (n, k, rows)) for n, k, _, _ in table]
    jobs += [(weight_quantizers.quantizers, (n, k, g)) for n, k, g, _ in table if k % 16 == 0]
    jobs += [(whole_ldlq, shape) for shape in ldlq_shapes]
    for job, shape in jobs:
        try:
            job(bench, *shape)
        except Red as wrong:
            status = 1
            bench.note(f"REFUSED, wrong answer: {wrong}")
    if given.tiny:
        bench.note("toy shapes: these figures mean nothing")
    print(write(given.out, bench.machine, bench.rows, bench.notes))
    return status


if __name__ == "__main__":
    sys.exit(main())
