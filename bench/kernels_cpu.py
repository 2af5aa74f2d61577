"""The memory-bound ops on the CPU, against a copy measured beside them.

    python bench/kernels_cpu.py [--threads 2] [--shape 3072x3072] [--rounds 15]

GB/s counts the bytes an op must move: its input once and its output once (tensor-wise twice its
input). Each round times every op next to a copy of the same tensor, and medians are compared. "CPU" is
the processor time of all threads, which other load on the machine hardly changes; "wall" is the clock.
"of copy" is the copy's time for the same bytes over the op's, by processor time; the copy is a clone,
because the ops too return fresh memory, whose page faults can cost more than the arithmetic. "rotation"
is what the rotated op takes beyond the plain one, in nanoseconds of one core per element.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch

from convert_to_quant import kernels

Op = tuple[str, Callable[[], object], int]


def ops(x: torch.Tensor) -> list[Op]:
    """Return (name, call, bytes that must move) of every op for input x [M, K]."""
    n, size = x.numel(), x.numel() * x.element_size()
    q, scale = kernels.quantize_rowwise(x)
    blocks, block_scale = kernels.quantize_blockwise(x, 128, 128)
    table: list[Op] = [
        ("quantize_tensorwise", lambda: kernels.quantize_tensorwise(x), 2 * size + n),
        ("quantize_blockwise 128x128", lambda: kernels.quantize_blockwise(x, 128, 128), size + n),
        ("quantize_blockwise 1x128", lambda: kernels.quantize_blockwise(x, 1, 128), size + n),
        ("dequantize block", lambda: kernels.dequantize(blocks, block_scale, x.dtype), size + n),
    ]
    for g in (0, *(g for g in kernels.GROUPS if x.shape[1] % g == 0)):
        suffix = f" rotation {g}" if g else ""
        table += [
            (f"quantize_rowwise{suffix}", lambda g=g: kernels.quantize_rowwise(x, g), size + n),
            (f"dequantize row{suffix}", lambda g=g: kernels.dequantize(q, scale, x.dtype, g), size + n),
        ]
        if g:
            table.append((f"rotate{suffix}", lambda g=g: kernels.rotate(x, g), 2 * size))
    return sorted(table, key=lambda row: (row[0].split()[0], "rotation" in row[0]))


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Return (processor seconds of all threads, seconds on the clock) of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(table: list[Op], copy: Callable[[], object], rounds: int) -> dict[str, tuple[list, list]]:
    """Return {op: (timings of the copy just before it, its own)}."""
    for _, call, _ in table:
        call()
    found: dict[str, tuple[list, list]] = {name: ([], []) for name, _, _ in table}
    for _ in range(rounds):
        for name, call, _ in table:
            copies, times = found[name]
            copies.append(timed(copy))
            times.append(timed(call))
    return found


def median(times: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the median of each of the two clocks."""
    return tuple(statistics.median(column) for column in zip(*times, strict=True))


def report(x: torch.Tensor, rounds: int) -> None:
    """Measure every op on x [M, K] and print a table."""
    y = torch.empty_like(x)
    table = ops(x)
    found = measure(table, x.clone, rounds)
    there_cpu, _ = median([timed(lambda: y.copy_(x)) for _ in range(rounds)])
    copy_cpu, copy_wall = median([t for copies, _ in found.values() for t in copies])
    moved = 2 * x.numel() * x.element_size()
    print(f"\n{tuple(x.shape)} {x.dtype}: clone {moved / copy_cpu / 1e9:.1f} GB/s CPU, ", end="")
    print(f"{moved / copy_wall / 1e9:.1f} wall; copy without page faults {moved / there_cpu / 1e9:.1f} CPU")
    print(
        f"{'op':<32}{'CPU ms':>8}{'wall ms':>9}{'GB/s CPU':>9}{'GB/s wall':>10}{'of copy':>9}{'rotation':>10}"
    )
    plain: dict[str, float] = {}
    for name, _, size in table:
        cpu, wall = median(found[name][1])
        base, _, group = name.partition(" rotation ")
        if not group:
            plain[base] = cpu
        beyond = f"{(cpu - plain[base]) / x.numel() * 1e9:.2f} ns" if group and base in plain else ""
        share = median(found[name][0])[0] * size / moved / cpu
        print(
            f"{name:<32}{cpu * 1e3:>8.2f}{wall * 1e3:>9.2f}{size / cpu / 1e9:>9.2f}{size / wall / 1e9:>10.2f}"
            f"{share:>8.0%} {beyond:>9}"
        )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--shape", default="3072x3072", help="rows x columns (default 3072x3072)")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows, columns = map(int, args.shape.split("x"))
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(
        f"torch {torch.__version__}, {args.threads} threads, {torch.backends.cpu.get_cpu_capability()}{load}"
    )
    for dtype in (torch.bfloat16, torch.float32):
        report(torch.randn(rows, columns).to(dtype), args.rounds)


if __name__ == "__main__":
    main()
