"""Memory and time of quantizing a model while diffusers loads it.

    python bench/from_pretrained.py [--blocks 12]

A random Flux in bfloat16 is saved, and loaded in processes of their own as it is and with a CtqConfig. Its
anonymous memory is what a process holds itself; the file is mapped, and its pages are the kernel's to drop.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time

import torch


def make(folder: str, blocks: int) -> None:
    """Save a Flux of 1536 features with `blocks` single blocks."""
    from diffusers import FluxTransformer2DModel

    sizes = {
        "num_layers": 1,
        "num_single_layers": blocks,
        "attention_head_dim": 128,
        "num_attention_heads": 12,
    }
    FluxTransformer2DModel(**sizes).to(torch.bfloat16).save_pretrained(folder)


def anonymous() -> float:
    """Return this process's anonymous memory in MB."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("RssAnon")) / 1024


def load(folder: str, quantize: bool) -> dict[str, float]:
    """Load the model; return seconds, and MB: peak while loading, what stays, and the parameters' own."""
    from diffusers import FluxTransformer2DModel

    from convert_to_quant.comfy.quant_ops import QuantizedTensor
    from convert_to_quant.diffusers import CtqConfig

    before, done, peak = anonymous(), threading.Event(), [0.0]

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    config = {"quantization_config": CtqConfig()} if quantize else {}
    model = FluxTransformer2DModel.from_pretrained(folder, torch_dtype=torch.bfloat16, **config)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    own = [
        list(p.inner_tensors().values()) if isinstance(p, QuantizedTensor) else [p]
        for p in model.parameters()
    ]
    return {
        "seconds": round(seconds, 1),
        "peak MB": round(peak[0] - before),
        "stays MB": round(anonymous() - before),
        "parameters MB": round(sum(t.nbytes for parts in own for t in parts) / 2**20),
    }


def main() -> None:
    """Run both in fresh processes and print what they say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=12, help="single blocks of the model (default 12)")
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        print(json.dumps(load(args.load[0], args.load[1] == "ctq")))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(folder, args.blocks)
        for how in ("float", "ctq"):
            run = [sys.executable, __file__, "--load", folder, how]
            out = subprocess.run(run, check=True, capture_output=True, text=True).stdout
            print(how, out.splitlines()[-1])


if __name__ == "__main__":
    main()
