"""How fast a large quantized file is edited, against a plain copy, and in how much memory.

    python bench/edit.py --gib 4 --folder /somewhere/on/the/disk

Makes a file of INT8 layers, then takes turns: ``ctq edit`` (a key set in every layer, the header's list
written) and ``cp`` followed by a sync, which is what an edit promises too. Both start with the input out of
the page cache. Prints the median of each, their ratio, and the edit's peak memory (resident set of the
child process, as the system counts it).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAYER = (3072, 12288)
KEYS = '{"note": "benchmark"}'


def make_input(path: Path, gib: float) -> None:
    """Write a file of as many [3072, 12288] layers as fit into `gib`, written in pieces."""
    rows, columns = LAYER
    config = json.dumps({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256}).encode()
    count = max(1, int(gib * 2**30 / (rows * columns)))
    header, at = {}, 0
    for i in range(count):
        parts = (
            ("weight_scale", "F32", [rows, 1], 4 * rows),
            ("weight", "I8", [rows, columns], rows * columns),
            ("comfy_quant", "U8", [len(config)], len(config)),
        )
        for name, dtype, shape, size in parts:
            entry = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
            header[f"blocks.{i}.linear.{name}"] = entry
            at += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    scale, piece = b"\x00\x00\x80\x3c" * rows, os.urandom(1 << 20)
    with open(path, "wb") as f:
        f.write(len(raw).to_bytes(8, "little") + raw)
        for _ in range(count):
            f.write(scale)
            for _ in range(rows * columns >> 20):  # small: a child's peak counts what its parent held
                f.write(piece)
            f.write(config)
        f.flush()
        os.fsync(f.fileno())


def forget(path: Path) -> None:
    """Put a file out of the page cache, where the system allows."""
    if hasattr(os, "posix_fadvise"):
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def timed(command: list[str]) -> tuple[float, int]:
    """Return (seconds, peak resident bytes) of a command; SystemExit with its output when it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=_environment())
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{output.decode()}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join((root, os.environ.get("PYTHONPATH", "")))}


def main() -> None:
    """Run the benchmark and print its record."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--gib", type=float, default=4.0, help="size of the file (default 4)")
    p.add_argument("--repeats", type=int, default=3, help="turns (default 3)")
    p.add_argument("--folder", help="where to work; takes twice the size (default: the temporary folder)")
    args = p.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        source, target = Path(folder) / "input.safetensors", Path(folder) / "output.safetensors"
        make_input(source, args.gib)
        size = source.stat().st_size
        edit = [sys.executable, "-m", "convert_to_quant", "edit", str(source), "-o", str(target)]
        edit += ["--add-keys", KEYS, "--save-quant-metadata"]
        copy = ["sh", "-c", 'cp "$0" "$1" && sync "$1"', str(source), str(target)]
        results: dict[str, list[tuple[float, int]]] = {"edit": [], "cp + sync": []}
        for _ in range(args.repeats):
            for name, command in (("edit", edit), ("cp + sync", copy)):
                forget(source)
                results[name].append(timed(command))
                target.unlink()
        report(results, size)


def report(results: dict[str, list[tuple[float, int]]], size: int) -> None:
    """Print medians, spreads, the ratio and the peak memory."""
    turns, python = len(results["edit"]), sys.version.split()[0]
    print(f"{size / 2**30:.2f} GiB, {turns} turns, Python {python}, {os.cpu_count()} cores")
    medians = {}
    for name, runs in results.items():
        seconds = [s for s, _ in runs]
        medians[name] = statistics.median(seconds)
        print(
            f"{name:<10} {medians[name]:7.2f} s (from {min(seconds):.2f} to {max(seconds):.2f})  "
            f"{size / 1e6 / medians[name]:8.0f} MB/s"
        )
    peak = max(memory for _, memory in results["edit"])
    print(f"edit / cp  {medians['edit'] / medians['cp + sync']:7.2f} of the time")
    print(f"edit peak memory {peak / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
