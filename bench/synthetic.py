"""Synthetic checkpoints with the names and shapes of Flux at any width, for benches.

    python bench/synthetic.py model.safetensors --hidden 768 --double 2 --single 4      # 156 MiB
    python bench/synthetic.py model.safetensors --hidden 1536 --double 3 --single 8     # 1.03 GiB

Weights are Gaussian with a log-normal gain a row and one column in a hundred eight times larger: the
outlier channels that make rotation worth its while. Written tensor by tensor.
"""

import argparse
import json
from pathlib import Path

import torch

SIZES = {"156 MiB": (768, 2, 4), "1 GiB": (1536, 3, 8), "4 GiB": (3072, 3, 8)}
"""hidden, double blocks, single blocks by the size they make."""


def shapes(hidden: int, double: int, single: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor, in file order."""
    out: dict[str, tuple[int, ...]] = {}

    def linear(name: str, n: int, k: int) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = (n, k), (n,)

    context = max(256, round(hidden * 4 / 3 / 256) * 256)
    linear("img_in", hidden, 256)
    linear("txt_in", hidden, context)
    linear("time_in.in_layer", hidden, 256)
    linear("time_in.out_layer", hidden, hidden)
    linear("vector_in.in_layer", hidden, 256)
    linear("vector_in.out_layer", hidden, hidden)
    for b in range(double):
        for stream in ("img", "txt"):
            p = f"double_blocks.{b}.{stream}"
            linear(f"{p}_mod.lin", 6 * hidden, hidden)
            linear(f"{p}_attn.qkv", 3 * hidden, hidden)
            out[f"{p}_attn.norm.query_norm.scale"] = out[f"{p}_attn.norm.key_norm.scale"] = (128,)
            linear(f"{p}_attn.proj", hidden, hidden)
            linear(f"{p}_mlp.0", 4 * hidden, hidden)
            linear(f"{p}_mlp.2", hidden, 4 * hidden)
    for b in range(single):
        p = f"single_blocks.{b}"
        linear(f"{p}.linear1", 7 * hidden, hidden)
        linear(f"{p}.linear2", hidden, 5 * hidden)
        linear(f"{p}.modulation.lin", 3 * hidden, hidden)
    linear("final_layer.linear", 256, hidden)
    linear("final_layer.adaLN_modulation.1", 2 * hidden, hidden)
    return out


def values(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Return one tensor, bfloat16."""
    x = torch.randn(shape, generator=generator)
    if len(shape) == 2:
        x *= torch.exp(0.3 * torch.randn(shape[0], 1, generator=generator))
        x[:, torch.randperm(shape[1], generator=generator)[: max(1, shape[1] // 100)]] *= 8
        x *= 0.7 / shape[1] ** 0.5
    return x.bfloat16()


def write(path: Path, hidden: int, double: int, single: int, seed: int = 0) -> int:
    """Write the model; returns the elements of its largest tensor."""
    spec = shapes(hidden, double, single)
    header, at = {}, 0
    for name, shape in spec.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    generator = torch.Generator().manual_seed(seed)
    with open(path, "wb") as f:
        f.write(len(raw).to_bytes(8, "little") + raw)
        for shape in spec.values():
            f.write(values(shape, generator).view(torch.uint8).numpy().tobytes())
    return max(torch.Size(s).numel() for s in spec.values())


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--double", type=int, default=2)
    parser.add_argument("--single", type=int, default=4)
    a = parser.parse_args()
    write(a.output, a.hidden, a.double, a.single)
    print(f"{a.output}: {a.output.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
