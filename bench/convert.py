"""Conversion of synthetic models as whole processes: time, CPU, throughput, peak memory, cost of the check.

    python bench/convert.py                      # 156 MiB and 1 GiB
    python bench/convert.py --sizes '4 GiB'      # needs 7 GiB of disk
    python bench/convert.py --model F            # a file of yours
    python bench/convert.py --format w4a8        # another format

Each row is the median of --runs processes after one that warms the page cache; the peak is the largest seen.
The bound is 350 MiB + 3 times the largest quantized layer in bfloat16. The share of the check is the median,
over pairs of runs with and without it, of the difference in CPU seconds.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import processes
import synthetic

from convert_to_quant.converter.options.settings import Settings
from convert_to_quant.converter.plan.build import build_plan
from convert_to_quant.files.checkpoint import open_checkpoint


def largest_layer_mib(model: Path) -> float:
    """Return the MiB of the largest layer that is quantized, in bfloat16."""
    with open_checkpoint(model) as checkpoint:
        return build_plan(checkpoint, Settings(input_file=str(model))).largest_layer * 2 / 2**20


def measure(model: Path, runs: int, output: Path, form: str) -> None:
    """Print the row of one model, converted to a value of ``--format``."""
    command = [sys.executable, "-m", "convert_to_quant", "-i", str(model), "-o", str(output)]
    command += ["--overwrite", "--format", form]
    processes.run(command)
    pairs = [(processes.run(command), processes.run([*command, "--no-verify"])) for _ in range(runs)]
    checked = processes.median([a for a, _ in pairs])
    share = statistics.median((a.cpu - b.cpu) / a.cpu for a, b in pairs)
    size = model.stat().st_size
    bound = 350 + 3 * largest_layer_mib(model)
    print(
        f"{model.name:28} {size / 2**20:8.1f} MiB  wall {checked.wall:6.2f} s  cpu {checked.cpu:6.2f} s  "
        f"{size / 1e6 / checked.wall:6.0f} MB/s  peak {checked.peak_mib:5.0f} MiB (bound {bound:4.0f})  "
        f"check {share:4.0%} of the CPU time",
        flush=True,
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="*", default=["156 MiB", "1 GiB"], choices=list(synthetic.SIZES))
    parser.add_argument("--model", nargs="*", type=Path, default=[])
    parser.add_argument("--format", default="int8")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary folder by default")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=a.folder) as folder:
        for model in a.model:
            measure(model, a.runs, Path(folder) / "out.safetensors", a.format)
        for size in a.sizes if not a.model else []:
            model = Path(folder) / f"{size.replace(' ', '')}.safetensors"
            synthetic.write(model, *synthetic.SIZES[size])
            measure(model, a.runs, Path(folder) / "out.safetensors", a.format)
            model.unlink()


if __name__ == "__main__":
    main()
