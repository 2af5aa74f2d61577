"""Time of calibrated LDLQ: single layers, and every linear layer of a checkpoint.

    OMP_WAIT_POLICY=passive python bench/ldlq.py                       # square layers of 1024, 2048, 3072
    OMP_WAIT_POLICY=passive python bench/ldlq.py --model dit.safetensors --format w4a8

Each layer gets 1024 correlated synthetic tokens; the time covers the Hessian, its factorization, the rounding
and the wrapping. "cpu" is user + system time of all threads. Waiting threads spin unless told not to, which
on a busy machine shows as CPU time: hence the variable.
"""

import argparse
import time

import torch
from safetensors import safe_open

from convert_to_quant.formats import Asked
from convert_to_quant.formats.choose import chosen, options
from convert_to_quant.kernels import largest_group
from convert_to_quant.quant.algorithms import LayerStats, QuantizeOptions, quantize_layer


def tokens(n: int, columns: int) -> torch.Tensor:
    """Return n tokens near a few directions, bf16 [n, columns], as recorded ones are."""
    g = torch.Generator().manual_seed(columns)
    hidden = torch.randn(n, 32, generator=g) @ torch.randn(32, columns, generator=g)
    return (hidden + torch.randn(n, columns, generator=g)).bfloat16()


def quantize(
    weight: torch.Tensor, samples: torch.Tensor, algorithm: str, name: str = "int8"
) -> tuple[float, float]:
    """Quantize one layer [N, K] to a value of ``--format`` and return its (wall, CPU) seconds."""
    found = chosen(name, None)
    rotation = largest_group(weight.shape[1]) if found.rotates else 0
    asked = QuantizeOptions(algorithm, found.make(Asked(rotation=rotation, option=name)), row_chunk=1024)
    wall, cpu = time.perf_counter(), time.process_time()
    quantize_layer(weight, LayerStats(samples), asked)
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--algorithm", default="quip")
    parser.add_argument("--format", default="int8", choices=options())
    parser.add_argument("--runs", type=int, default=3)
    a = parser.parse_args()
    what = f"{a.tokens} tokens, {a.algorithm}, {a.format}"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {what}")
    quantize(torch.randn(512, 512), tokens(64, 512), a.algorithm, a.format)
    if a.model is None:
        for size in (1024, 2048, 3072):
            weight, samples = torch.randn(size, size).bfloat16(), tokens(a.tokens, size)
            best = min(quantize(weight, samples, a.algorithm, a.format) for _ in range(a.runs))
            print(f"{size} x {size}: wall {best[0]:.2f} s, cpu {best[1]:.2f} s", flush=True)
        return
    wall = cpu = elements = 0.0
    with safe_open(a.model, framework="pt") as f:
        names = [n for n in f.keys() if n.endswith(".weight") and len(f.get_slice(n).get_shape()) == 2]  # noqa: SIM118
        for name in names:
            weight = f.get_tensor(name)
            times = quantize(weight, tokens(a.tokens, weight.shape[1]), a.algorithm, a.format)
            wall, cpu, elements = wall + times[0], cpu + times[1], elements + weight.numel()
    print(
        f"{a.model}: {len(names)} layers, {elements / 1e6:.0f} M weights: wall {wall:.1f} s, cpu {cpu:.1f} s"
    )


if __name__ == "__main__":
    main()
