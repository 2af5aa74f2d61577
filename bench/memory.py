"""Peak memory of LDLQ on one wide layer, with and without checkpointing, and whether the bits agree.

    python bench/memory.py                          # K = 16384, N = 4096: 4 GiB, a few minutes
    python bench/memory.py --columns 4096 --rows 1024
    python bench/memory.py --device cuda

"plain" holds the whole layer in float32 and keeps H beside the steps of its factorization; "checkpointed"
factors H in its own memory and takes the rows in chunks. Each runs in a process of its own. The peak is the
most that the process (on a GPU: torch's allocator) held, less the weight, the samples and the integers that
come out, which both need.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import threading
import time

import torch

from convert_to_quant.formats import Int8Tensorwise
from convert_to_quant.quant.algorithms import LayerStats, QuantizeOptions, quantize_layer

MODES = {"plain": {}, "checkpointed": {"row_chunk": 128, "in_place": True}}


def resident() -> int:
    """Return the bytes of this process that are in memory now."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096


class Peak:
    """The most this process held while the block ran, above what it held before."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0

    def __enter__(self) -> "Peak":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.start = torch.cuda.memory_allocated(self.device)
            return self
        self.start, self.done = resident(), threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.002):
            self.bytes = max(self.bytes, resident() - self.start)

    def __exit__(self, *exc: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self.start
            return
        self.done.set()
        self.thread.join()


def one(mode: str, rows: int, columns: int, tokens: int, device: str) -> dict:
    """Quantize one synthetic layer; return the peak in bytes, the seconds and a hash of the integers."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=g).bfloat16()
    samples = torch.randn(tokens, 64, generator=g) @ torch.randn(64, columns, generator=g)
    samples = (samples + torch.randn(tokens, columns, generator=g)).bfloat16()
    # Warms the libraries up: their own pools are no part of the algorithm.
    small = LayerStats(samples[:64, :256].clone())
    options = {"format": Int8Tensorwise(rotation=256), "device": device}
    quantize_layer(weight[:64, :256].clone(), small, QuantizeOptions("quip", **options))
    start = time.perf_counter()
    with Peak(torch.device(device)) as peak:
        result = quantize_layer(
            weight, LayerStats(samples), QuantizeOptions("quip", **options, **MODES[mode])
        )
    seconds = time.perf_counter() - start
    digest = hashlib.sha256(result.weight._qdata.numpy().tobytes()).hexdigest()
    # On a GPU the integers lie on the host.
    peak.bytes -= rows * columns if device == "cpu" else 0
    return {"peak": peak.bytes, "seconds": seconds, "hash": digest}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--columns", type=int, default=16384)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.mode:
        print(json.dumps(one(a.mode, a.rows, a.columns, a.tokens, a.device)))
        return
    found = {}
    for mode in MODES:
        command = [sys.executable, __file__, "--mode", mode, "--device", a.device]
        command += [f"--{name}={getattr(a, name)}" for name in ("columns", "rows", "tokens")]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[mode] = json.loads(done.stdout)
        row = found[mode]
        print(f"{mode:13} peak {row['peak'] / 2**20:7.0f} MiB  {row['seconds']:6.1f} s", flush=True)
    plain, lean = found["plain"], found["checkpointed"]
    print(f"falls by {1 - lean['peak'] / plain['peak']:.1%}; bit-identical: {plain['hash'] == lean['hash']}")


if __name__ == "__main__":
    main()
