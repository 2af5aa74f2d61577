"""What a Ray cluster gains on this machine: a calibrated conversion in one process, and with two workers.

    python bench/ray_cluster.py [--layers 12] [--rows 1024] [--columns 2048] [--tokens 2048] [--rounds 3]

Each round runs both, one after the other, with one thread per process; printed are medians of the wall time
and of the CPU time of the process that reads, checks and writes, of its thread that checks and writes, which
is the busiest, and of the processes that compute. On a machine that does other work too, CPU times are what
to compare. The files must be the same to the byte.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ray.cluster_utils import Cluster
from safetensors.torch import save_file

from convert_to_quant import convert
from convert_to_quant.converter.convert import pipeline
from convert_to_quant.quant.algorithms import LayerStats
from convert_to_quant.quant.calibration import save as save_calibration
from convert_to_quant.ray import RayExecutor


def made(folder: Path, layers: int, rows: int, columns: int, tokens: int) -> dict[str, str]:
    """Write a model of equal layers and its calibration; return the options of its conversion."""
    g = torch.Generator().manual_seed(0)
    weights, stats = {}, {}
    for i in range(layers):
        weights[f"blocks.{i}.fc.weight"] = (torch.randn(rows, columns, generator=g) * 0.05).bfloat16()
        x = torch.randn(tokens, columns, generator=g).bfloat16()
        stats[f"blocks.{i}.fc"] = LayerStats(samples=x, channel_max=x.float().abs().amax(0))
    save_file(weights, folder / "model.safetensors")
    save_calibration(folder / "calibration.safetensors", stats)
    return {
        "input_file": str(folder / "model.safetensors"),
        "calibration_data": str(folder / "calibration.safetensors"),
    }


def workers_cpu() -> float:
    """Return the CPU seconds that this machine's Ray workers have taken so far."""
    total, tick = 0, os.sysconf("SC_CLK_TCK")
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and (process / "cmdline").read_bytes().startswith(b"ray::"):
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
        except OSError:  # it ended meanwhile
            continue
    return total / tick


class Writing:
    """The CPU seconds of what the pipeline's writer does."""

    def __init__(self) -> None:
        self.seconds, self._run = 0.0, pipeline.run
        pipeline.run = self._counted

    def _counted(self, items: Any, *, write: Callable[[Any, Any], None], **others: Any) -> None:
        def clocked(item: Any, result: Any) -> None:
            start = time.thread_time()
            write(item, result)
            self.seconds += time.thread_time() - start

        self._run(items, write=clocked, **others)


def timed(
    options: dict[str, str], output: Path, executor: RayExecutor | None, writing: Writing
) -> tuple[float, ...]:
    """Convert; return the seconds on the wall, of this process's CPUs, of its writer, and of the workers."""
    writing.seconds = 0.0
    wall, own, theirs = time.perf_counter(), time.process_time(), workers_cpu()
    convert(output_file=str(output), overwrite=True, executor=executor, **options)
    wall, own = time.perf_counter() - wall, time.process_time() - own
    return wall, own, writing.seconds, workers_cpu() - theirs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("layers", 12), ("rows", 1024), ("columns", 2048), ("tokens", 2048), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default, which other work would starve
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    found: dict[str, list[tuple[float, ...]]] = {"one process": [], "two workers": []}
    writing = Writing()
    with tempfile.TemporaryDirectory() as name, RayExecutor(cluster.address) as executor:
        folder = Path(name)
        options = made(folder, args.layers, args.rows, args.columns, args.tokens)
        places = {"one process": None, "two workers": executor}
        for what, where in places.items():  # once without a clock
            timed(options, folder / f"{what}.safetensors", where, writing)
        for _ in range(args.rounds):
            for what, where in places.items():
                found[what].append(timed(options, folder / f"{what}.safetensors", where, writing))
        one, two = ((folder / f"{what}.safetensors").read_bytes() for what in places)
        assert one == two, "the files differ"
    cluster.shutdown()
    print(f"{args.layers} layers [{args.rows}, {args.columns}], {args.tokens} tokens, {args.rounds} rounds")
    for what, runs in found.items():
        wall, own, writer, theirs = (statistics.median(column) for column in zip(*runs, strict=True))
        here = f"{own:.2f} s here ({writer:.2f} s of it checking and writing)"
        print(f"{what}: {wall:.1f} s; CPU {here} and {theirs:.1f} s in workers")


if __name__ == "__main__":
    main()
