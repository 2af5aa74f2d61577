"""The conversion rates that a dry run predicts times with.

    python bench/estimate.py [--runs 3] [--layers 4]

Converts a checkpoint of Flux-sized layers (3072 x 12288, bfloat16, heavy tails) in each kind of format, and
one of 2048 x 2048 layers with each algorithm and 1024 calibration tokens per layer. The first table is what
a whole conversion, check included, does per second that elapses, and the elapsed and the processor's
seconds: on two idle cores it goes into `speed` of each format (formats/). The second is the processor's
seconds of each algorithm beside those that formats/work.py counts, for one core, and the rates with which
its counts would fit best, times two.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from convert_to_quant.formats.algorithms import ALGORITHMS as ALGORITHM_TABLE
from convert_to_quant.formats.choose import default_format, writable
from convert_to_quant.formats.work import Work
from convert_to_quant.quant.algorithms import LayerStats
from convert_to_quant.quant.calibration import save as save_calibration
from convert_to_quant.quantization import convert_to_int8

KINDS = {
    "row": {"convrot": False},
    "row + convrot": {},
    "tensor": {"scaling_mode": "tensor", "convrot": False},
    "tensor + convrot": {"scaling_mode": "tensor"},
    "block": {"scaling_mode": "block"},
    **{word: {"format": word} for word in writable() if word != default_format().name},
}
TOKENS = 1024
LEARNED = ("original", "adamw", "radam")
ALGORITHMS = {
    "ldlq": {"optimizer": "ldlq"},
    "quip": {"optimizer": "quip"},
    "quip, 4 passes": {"optimizer": "quip", "quip_passes": 4},
    **{f"{name}, {n} steps": {"optimizer": name, "num_iter": n} for n in (5, 45) for name in LEARNED},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="conversions of each kind (default 3)")
    parser.add_argument("--layers", type=int, default=4, help="layers in a checkpoint (default 4)")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = checkpoint(folder / "model.safetensors", args.layers, 3072, 12288)
        for kind, options in KINDS.items():
            show(kind, args.layers * 3072 * 12288, args.runs, model, {"simple": True, **options})
        side = 2048
        model = checkpoint(folder / "square.safetensors", args.layers, side, side)
        names = [f"blocks.{i}.linear" for i in range(args.layers)]
        records = {name: LayerStats(torch.randn(TOKENS, side).bfloat16()) for name in names}
        calibration = save_calibration(folder / "data.safetensors", records)
        data = {"calibration_data": str(calibration), "device": "cpu"}
        fit([algorithm(n, o, args.layers, args.runs, model, side, data) for n, o in ALGORITHMS.items()])


def checkpoint(path: Path, layers: int, rows: int, columns: int) -> Path:
    """Write a model of equal layers with heavy-tailed weights and return its path."""
    weight = torch.distributions.StudentT(4.0).sample((rows, columns)).mul_(0.02).bfloat16()
    save_file({f"blocks.{i}.linear.weight": weight.clone() for i in range(layers)}, str(path))
    return path


def show(kind: str, work: int, runs: int, model: Path, options: dict) -> None:
    """Time conversions and print one row of a table: work per elapsed second."""
    busy, seconds = min(timed(model, options) for _ in range(runs))
    print(f'    "{kind}": {work / seconds:.1e},  # {seconds:.2f} s, processor {busy:.2f} s', flush=True)


def algorithm(
    name: str, options: dict, layers: int, runs: int, model: Path, side: int, data: dict
) -> tuple[Work, float]:
    """Time an algorithm and print it beside its estimate; return both, for one layer."""
    busy = min(timed(model, {**data, **options})[0] for _ in range(runs)) / layers
    steps, passes = options.get("num_iter", 0), options.get("quip_passes", 0)
    work = ALGORITHM_TABLE[options["optimizer"]].work((side, side), TOKENS, steps, passes)
    print(f"    {name}: {busy:.2f} s a layer, estimated {2 * work.seconds:.2f}", flush=True)
    return work, busy


def fit(found: list[tuple[Work, float]]) -> None:
    """Print the rates with which the counts fit the times best, each by its share of the time."""
    counts = torch.tensor([[w.products / s, w.touches / s] for w, s in found], dtype=torch.float64)
    ones = torch.ones(len(found), 1, dtype=torch.float64)
    seconds = torch.linalg.lstsq(counts / counts.amax(0), ones).solution[:, 0] / counts.amax(0)
    print("    best rates: PRODUCTS {:.1e}, TOUCHES {:.1e}".format(*(2 / seconds).tolist()))


def timed(path: Path, options: dict) -> tuple[float, float]:
    """Convert once; return the processor's seconds, all cores together, and the elapsed ones."""
    output = path.with_name("out.safetensors")
    start, busy = time.perf_counter(), time.process_time()
    convert_to_int8(str(path), str(output), **options)
    seconds = time.process_time() - busy, time.perf_counter() - start
    output.unlink()
    return seconds


if __name__ == "__main__":
    main()
