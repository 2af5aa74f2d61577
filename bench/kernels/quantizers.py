"""Time the quantizers of weights (MXFP8, NVFP4, int4 rows, W4A8, W6A8), and read their machine code.

The floor is one read of a bfloat16 weight and one write of what is stored. The searches take more
instructions than hide behind that: `show` prints how many there are, and how many would.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import machine_code
import torch
from checks import Red

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

import ahead_of_time

from convert_to_quant import kernels
from convert_to_quant.kernels.decoded import CODEBOOK
from convert_to_quant.kernels.triton import decoded, int4, mxfp8, nvfp4
from convert_to_quant.kernels.triton._arch import Arch, assume
from convert_to_quant.kernels.triton._operands import empty


class Kind(NamedTuple):
    """A quantizer. call: of (weight, rotation). columns: K is a multiple of it. stored: bytes a weight."""

    call: Callable
    columns: int
    stored: float


KINDS = {
    "mxfp8": Kind(lambda w, rotation: kernels.quantize_mxfp8(w), 32, 1 + 1 / 32),
    "nvfp4": Kind(lambda w, rotation: kernels.quantize_nvfp4(w), 16, 0.5 + 1 / 16),
    "int4": Kind(kernels.quantize_int4, 2, 0.5),
    "w4a8": Kind(lambda w, rotation: kernels.quantize_decoded(w, 4, 16, rotation), 16, 0.5625),
    "w6a8": Kind(lambda w, rotation: kernels.quantize_decoded(w, 6, 16, rotation), 16, 0.8125),
}


def quantizers(bench, n: int, k: int, rotation: int) -> None:
    """Time every kind on one weight; Red where one is wrong."""
    weight = bench.random(n, k)
    for name, kind in KINDS.items():
        if k % kind.columns:
            continue
        if found := wrong(name, weight[:256], rotation):
            raise Red(f"quantize {name}, {n} x {k}: {found} differ from the twin's")
        moved = int((2 + kind.stored) * n * k)
        call = partial(kind.call, weight, rotation)
        bench.memory_bound("Quantize weights", f"quantize {name}", f"{n}x{k}", moved, call)


def wrong(name: str, weight: torch.Tensor, rotation: int) -> int:
    """Return how much is not as it should be: bytes that differ from the twin's for MXFP8 and NVFP4.

    For the others, rows whose squared error is more than 1e-4 above the twin's, or no number.
    """
    got = KINDS[name].call(weight, rotation)
    with kernels.force_eager():
        want = KINDS[name].call(weight, rotation)
        if name in ("mxfp8", "nvfp4"):
            pairs = zip(got, want, strict=True)
            return sum(int((_bytes(a) != _bytes(b)).sum()) for a, b in pairs)
        exact = kernels.rotate(weight.float(), rotation)
        mine, twin = ((_values(name, made) - exact).square().sum(1) for made in (got, want))
    return int((~(mine <= twin * (1 + 1e-4))).sum())


def _bytes(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1).view(torch.uint8)


def _values(name: str, made: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the rotated weight that the result of a quantizer by rows stands for."""
    if name == "int4":
        return kernels.decode(made[0], 4) * made[1]
    table = torch.tensor(CODEBOOK, device=made[0].device) if name == "w4a8" else None
    return kernels.decode(made[0], 6 if name == "w6a8" else 4, made[1], table) * made[2]


MEMORY = {"sm_80": 13, "sm_89": 3.2, "sm_90": 14, "sm_120": 4.4}
"""Target -> bytes of memory per clock and SM, from the datasheets of A100, RTX 4090, H100 and RTX 5090."""

HEAD = "| target | quantizer | registers | spill | KiB | narrow loads | instructions a weight | hidden |"


def show(targets) -> None:
    """Print a table: instructions of a warp for 32 weights, and how many hide behind a weight's bytes."""
    print(HEAD)
    print("| --- " * (HEAD.count("|") - 1) + "|")
    for target in targets:
        for name in KINDS:
            needs, code, weights = compiled(target, name)
            reached = machine_code.accesses(code)
            narrow = sum(c for (kind, size), c in reached.items() if kind == "LDG" and size < 16)
            hidden = 128 * (2 + KINDS[name].stored) / MEMORY[target]
            line = len(straight(code)) / weights
            spill, kib = max(needs.stack, needs.local), f"{needs.shared / 1024:.0f}"
            values = target, name, needs.registers, spill, kib, narrow, f"{line:.0f}", f"{hidden:.0f}"
            print(f"| {' | '.join(map(str, values))} |", flush=True)


def compiled(target: str, name: str, n: int = 12288, k: int = 3072):
    """Return (needs, code, weights a thread) of a quantizer's kernel for bfloat16 weights [n, k]."""
    family, gpu, _ = ahead_of_time.TARGETS[target]
    weight = empty((n, k), torch.bfloat16, torch.device("meta"))
    with assume(Arch(family, target)):
        launch = {
            "mxfp8": lambda: mxfp8.quantize_mxfp8.plan(weight),
            "nvfp4": lambda: nvfp4.quantize_nvfp4.plan(weight),
            "int4": lambda: int4.quantize_int4.plan(weight, 256),
            "w4a8": lambda: decoded.quantize_decoded.plan(weight, 4, 16, 256),
            "w6a8": lambda: decoded.quantize_decoded.plan(weight, 6, 16, 256),
        }[name]().steps[-1]
    kernel = ahead_of_time.build(launch, gpu)
    code = machine_code.disassemble(kernel.asm["cubin"])
    threads = launch.num_warps * 32
    rows = launch.args["ROWS"] * launch.args["BLOCKS"] if "BLOCKS" in launch.args else 0
    weights = rows * KINDS[name].columns if rows else k
    return ahead_of_time.needs(kernel, gpu), code, weights / threads


def straight(code: list[tuple[str, str | None]]) -> list[str]:
    """Return the instructions up to the end of the kernel; what lies beyond is divisions of rare numbers."""
    texts = [text for text, _ in code]
    return texts[: texts.index("EXIT") + 1]
