"""The conversion rates that ``converter/estimate.py`` predicts times with.

    python bench/estimate.py [--runs 3] [--layers 4]

Converts a checkpoint of Flux-sized layers (3072 x 12288, bfloat16, heavy tails) in each kind of format and
prints weights a second of the whole conversion, check included: the best of the runs, because other work on
the machine only ever slows one down. The processor's seconds beside it tell how much there was of that.
Paste the table into ELEMENTS_PER_SECOND with the machine it was made on.
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

from convert_to_quant.quantization import convert_to_int8

SHAPE = (3072, 12288)
KINDS = {
    "row": {"convrot": False},
    "row + convrot": {},
    "tensor": {"scaling_mode": "tensor", "convrot": False},
    "tensor + convrot": {"scaling_mode": "tensor"},
    "block": {"scaling_mode": "block"},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="conversions per format (default 3)")
    parser.add_argument("--layers", type=int, default=4, help="layers in the checkpoint (default 4)")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
          f"{args.layers} layers of {SHAPE[0]} x {SHAPE[1]}, best of {args.runs}")  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model.safetensors"
        weight = torch.distributions.StudentT(4.0).sample(SHAPE).mul_(0.02).bfloat16()
        save_file({f"blocks.{i}.linear.weight": weight.clone() for i in range(args.layers)}, str(path))
        for kind, options in KINDS.items():
            seconds, busy = min(timed(path, options) for _ in range(args.runs))
            rate = args.layers * weight.numel() / seconds
            print(f'    "{kind}": {rate:.1e},  # {seconds:.2f} s, processor {busy:.2f} s')


def timed(path: Path, options: dict) -> tuple[float, float]:
    """Seconds of one conversion, and the processor's seconds in it."""
    output = path.with_name("out.safetensors")
    start, busy = time.perf_counter(), time.process_time()
    convert_to_int8(str(path), str(output), **options)
    seconds = time.perf_counter() - start, time.process_time() - busy
    output.unlink()
    return seconds


if __name__ == "__main__":
    main()
