"""What a LoRA merge adds to a conversion: paired runs, plain and merging, on a Flux-shaped model.

    python bench/lora.py                      # 156 MiB, ranks 16 and 64, one and three LoRAs
    python bench/lora.py --hidden 1536 --pairs 3

Each pair runs the same model plain and merging, one after the other, in alternating order, so that a busy
machine slows both. Wall time includes syncing the output to the disk and is noisy; CPU time is the work.
Target: a merge adds less than 30 %. Peak memory is of a process that only does that conversion.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from convert_to_quant import convert_to_int8

TARGET = 1.30


def write_model(path: Path, hidden: int) -> dict[str, tuple[int, int]]:
    """Write two double and four single Flux blocks in bfloat16; return the layers by name."""
    shapes: dict[str, tuple[int, int]] = {}
    for b in range(2):
        for s in ("img", "txt"):
            shapes[f"double_blocks.{b}.{s}_mod.lin"] = (6 * hidden, hidden)
            shapes[f"double_blocks.{b}.{s}_attn.qkv"] = (3 * hidden, hidden)
            shapes[f"double_blocks.{b}.{s}_attn.proj"] = (hidden, hidden)
            shapes[f"double_blocks.{b}.{s}_mlp.0"] = (4 * hidden, hidden)
            shapes[f"double_blocks.{b}.{s}_mlp.2"] = (hidden, 4 * hidden)
    for b in range(4):
        shapes[f"single_blocks.{b}.linear1"] = (7 * hidden, hidden)
        shapes[f"single_blocks.{b}.linear2"] = (hidden, 5 * hidden)
        shapes[f"single_blocks.{b}.modulation.lin"] = (3 * hidden, hidden)
    g = torch.Generator().manual_seed(0)
    weights = {f"{n}.weight": torch.randn(*s, generator=g).mul_(0.03).bfloat16() for n, s in shapes.items()}
    save_file(weights, path)
    return shapes


def write_lora(path: Path, shapes: dict[str, tuple[int, int]], rank: int) -> Path:
    """Write a kohya-named LoRA of every layer; return its path."""
    g = torch.Generator().manual_seed(rank)
    tensors = {}
    for name, (n, k) in shapes.items():
        module = f"lora_unet_{name.replace('.', '_')}"
        tensors[f"{module}.lora_down.weight"] = torch.randn(rank, k, generator=g).mul_(k**-0.5).bfloat16()
        tensors[f"{module}.lora_up.weight"] = torch.randn(n, rank, generator=g).mul_(0.02).bfloat16()
        tensors[f"{module}.alpha"] = torch.tensor(float(rank))
    save_file(tensors, path)
    return path


def timed(model: Path, output: Path, loras: list[Path]) -> tuple[float, float]:
    """Convert once; return (wall, CPU) seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    convert_to_int8(model, output, merge_lora_paths=loras, overwrite=True)
    return time.perf_counter() - wall, time.process_time() - cpu


def paired(model: Path, output: Path, loras: list[Path], pairs: int) -> dict[str, float]:
    """Return medians of the plain and the merging runs, and of the ratios within each pair."""
    runs: dict[str, list[tuple[float, float]]] = {"plain": [], "merge": []}
    for i in range(pairs):
        for kind in ("plain", "merge") if i % 2 else ("merge", "plain"):
            runs[kind].append(timed(model, output, loras if kind == "merge" else []))
    result = {}
    for j, clock in enumerate(("wall", "cpu")):
        for kind, times in runs.items():
            result[f"{kind}_{clock}_s"] = statistics.median(t[j] for t in times)
        ratios = [m[j] / p[j] for m, p in zip(runs["merge"], runs["plain"], strict=True)]
        result[f"{clock}_ratio"] = statistics.median(ratios)
    return result


def peak_mib(model: Path, output: Path, loras: list[Path]) -> float:
    """Return the peak resident memory of a process that does one conversion, in MiB (Linux)."""
    code = (
        "import re, sys; from convert_to_quant import convert_to_int8; "
        "convert_to_int8(sys.argv[1], sys.argv[2], merge_lora_paths=sys.argv[3:], overwrite=True); "
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024)"
    )
    command = [sys.executable, "-c", code, str(model), str(output), *map(str, loras)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Run all cases, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--folder", help="where to write (default: a temporary folder)")
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        model, output = folder / "model.safetensors", folder / "out.safetensors"
        shapes = write_model(model, args.hidden)
        loras = [write_lora(folder / f"r{rank}.safetensors", shapes, rank) for rank in args.ranks]
        cases = {f"rank {r}": [lora] for r, lora in zip(args.ranks, loras, strict=True)}
        cases[f"3 x rank {args.ranks[0]}"] = [loras[0]] * 3
        timed(model, output, loras)  # warm: imports, page cache
        plain = peak_mib(model, output, [])
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor()}")
        print(f"model {model.stat().st_size / 2**20:.0f} MiB, {args.pairs} pairs, peak plain {plain:.0f} MiB")
        print(
            f"{'case':>14} {'plain CPU s':>12} {'merge CPU s':>12} {'CPU x':>7} {'wall x':>7} {'peak MiB':>9}"
        )
        results = {}
        for case, files in cases.items():
            r = results[case] = paired(model, output, files, args.pairs)
            r["peak_mib"] = peak_mib(model, output, files)
            print(
                f"{case:>14} {r['plain_cpu_s']:12.3f} {r['merge_cpu_s']:12.3f} {r['cpu_ratio']:7.2f} "
                f"{r['wall_ratio']:7.2f} {r['peak_mib']:9.0f}"
            )
        worst = max(r["cpu_ratio"] for r in results.values())
        print(f"worst CPU ratio {worst:.2f}, target {TARGET:.2f}: {'met' if worst < TARGET else 'missed'}")
        if args.json:
            Path(args.json).write_text(
                json.dumps({"peak_plain_mib": plain, "cases": results}, indent=1) + "\n"
            )


if __name__ == "__main__":
    main()
