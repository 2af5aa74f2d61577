"""How long a dry run takes, as a whole process, over the catalogs of real models.

    python bench/dry_run.py [--runs 5] [--catalogs FOLDER]

Each catalog becomes a checkpoint whose header is whole and whose data is a hole in the file, planned by
``convert_to_quant -i FILE --dry-run`` from process start to exit. Prints for each the tensors and the median
of the runs, slowest last. The floor is the start of Python alone, shown first; "choosing" is the detection
of the model and the decision on every tensor, by themselves, in a process that is warm.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="processes per catalog (default 5)")
    parser.add_argument("--catalogs", help="folder of catalogs; by default where the tests look")
    args = parser.parse_args()
    if args.catalogs:
        os.environ["CTQ_CATALOGS"] = args.catalogs
    import catalogs

    folder = catalogs.FULL if catalogs.FULL.is_dir() else catalogs.SMALL
    print(f"python {sys.version.split()[0]}, {os.cpu_count()} cores, {args.runs} runs each")
    print(f"{'python -c pass':28} {'':>8} {median(['-c', 'pass'], args.runs):8.3f} s")
    print(f"{'checkpoint':28} {'tensors':>8} {'dry run':>10} {'choosing':>10}")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in catalogs.names(folder):
            shapes = catalogs.load(folder, name)[1]
            path = catalogs.write_hollow(Path(temporary) / f"{name}.safetensors", shapes)
            command = ["-m", "convert_to_quant", "-i", str(path), "--dry-run"]
            rows.append((median(command, args.runs), choosing(shapes, args.runs), len(shapes), name))
            path.unlink()
    for seconds, chosen, tensors, name in sorted(rows):
        print(f"{name:28} {tensors:8} {seconds:8.3f} s {chosen:8.3f} s")


def choosing(shapes: dict[str, tuple[int, ...]], runs: int) -> float:
    """Return median processor seconds to detect the model and decide on each tensor, in this process."""
    from convert_to_quant.converter.layers.selection import select
    from convert_to_quant.converter.presets import detect

    times = []
    for _ in range(runs):
        start = time.process_time()
        select(shapes, detect(shapes))
        times.append(time.process_time() - start)
    return statistics.median(times)


def median(arguments: list[str], runs: int) -> float:
    """Return median seconds of a Python process with these arguments; RuntimeError when one fails."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        times.append(time.perf_counter() - start)
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)}: {done.stderr}")
    return statistics.median(times)


if __name__ == "__main__":
    main()
