"""Figures of the runtime: what a QuantizedTensor costs per call, loading, memory, graph breaks.

    python bench/runtime.py [--json FILE] [--mb 1024] [--inductor]

Overhead: F.linear(x, q, b) with the op itself replaced by a constant, less calling that constant: only
the Python between the model and the op is left, whatever the op costs on this machine. Load: bytes from
the page cache a second, of wall time and of processor time, which other work on the machine changes less.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from convert_to_quant.comfy.quant_ops import QuantizedTensor
from convert_to_quant.quant.layouts import int8 as int8_layout
from convert_to_quant.runtime import empty_weights, load_quantized, quantize_model, save_quantized


def per_call(call, n: int = 5000, repeats: int = 9) -> float:
    """Return microseconds of processor time per call: the median of `repeats` means of `n`."""
    for _ in range(n // 10):
        call()
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        for _ in range(n):
            call()
        times.append((time.thread_time() - start) / n * 1e6)
    return statistics.median(times)


def overhead() -> dict[str, float]:
    """Return the microseconds that a QuantizedTensor adds to its op, for tiny shapes where it shows most."""
    torch.manual_seed(0)
    module = nn.Linear(64, 64).requires_grad_(False)
    quantize_model(module, rotation=16, include="*")
    q, bias, x = module.weight, module.bias, torch.randn(1, 64)
    args = (x, q._qdata, q._layout_params["scale"], bias, 16, None)
    real, op, constant = int8_layout.ops, torch.ops.convert_to_quant.int8_linear, torch.zeros(1, 64)
    stub = SimpleNamespace(int8_linear=lambda *a: constant)
    float_module = nn.Linear(64, 64).requires_grad_(False)
    out = {}
    with torch.inference_mode():
        int8_layout.ops = stub
        try:
            base = per_call(lambda: stub.int8_linear(*args))
            out["F.linear over op, us"] = per_call(lambda: F.linear(x, q, bias)) - base
            out["module over op, us"] = per_call(lambda: module(x)) - base
        finally:
            int8_layout.ops = real
        out["nn.Linear, float, whole call, us"] = per_call(lambda: float_module(x))
        out["op, whole call, us"] = per_call(lambda: op(*args), n=500)
        out["F.linear, whole call, us"] = per_call(lambda: F.linear(x, q, bias), n=500)
    return out


def _stack(layers: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(2048, 2048, bias=False, dtype=torch.bfloat16) for _ in range(layers)))


def write(path: str, mb: int) -> None:
    """Write a synthetic INT8 checkpoint of about `mb` MB."""
    with empty_weights():
        model = _stack(mb // 4)
    for layer in model:
        q = torch.randint(-127, 128, (2048, 2048), dtype=torch.int8)
        params = {"scale": torch.full((2048, 1), 0.01), "rotation": 256, "orig_dtype": torch.bfloat16}
        layer.weight = nn.Parameter(QuantizedTensor(q, "TensorWiseINT8Layout", params), requires_grad=False)
    save_quantized(model, path)


def load(path: str) -> dict[str, float]:
    """Load in this process and say how fast and in how much memory."""
    with open(path, "rb") as f:
        while f.read(1 << 26):
            pass
    with empty_weights():
        model = _stack(os.path.getsize(path) // (4 << 20))
    before = _memory("VmRSS")
    start, cpu = time.perf_counter(), time.process_time()
    report = load_quantized(model, path)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = _memory("VmHWM") - before
    size = os.path.getsize(path)
    return {
        "file, MB": size / 1e6,
        "load, GB/s": report.bytes_read / wall / 1e9,
        "load, GB per second of processor time": report.bytes_read / cpu / 1e9,
        "memory after loading / file size": (_memory("VmRSS") - before) / size,
        "peak memory while loading / file size": peak / size,
    }


def _memory(kind: str) -> int:
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(kind)) * 1024


def loading(mb: int) -> dict[str, float]:
    """Write a checkpoint, then load it in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a.safetensors")
        write(path, mb)
        run = [sys.executable, __file__, "--load", path]
        return json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


def compiling(inductor: bool) -> dict[str, float]:
    """Count graph breaks of a block of quantized linears, and compare compiled with eager."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 128)).requires_grad_(False)
    quantize_model(model)
    x = torch.randn(3, 7, 128)
    out: dict[str, float] = {}
    with torch.no_grad():
        out["graph breaks"] = torch._dynamo.explain(model)(x).graph_break_count
        for backend in ("aot_eager", *(["inductor"] if inductor else [])):
            torch._dynamo.reset()
            got, want = torch.compile(model, fullgraph=True, backend=backend)(x), model(x)
            out[f"{backend}: largest difference from eager"] = float((got - want).abs().max())
    return out


def main() -> int:
    """Print the figures, and write them to --json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--mb", type=int, default=1024, help="size of the checkpoint to load")
    parser.add_argument("--inductor", action="store_true", help="also compile with inductor (about a minute)")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        print(json.dumps(load(args.load)))
        return 0
    machine = {"torch": torch.__version__, "python": platform.python_version(), "cpus": os.cpu_count()}
    figures = {**overhead(), **loading(args.mb), **compiling(args.inductor)}
    for name, value in {**machine, **figures}.items():
        print(f"{name:45} {value:.3f}" if isinstance(value, float) else f"{name:45} {value}")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({**machine, **figures, "load average": os.getloadavg()[0]}, f, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
