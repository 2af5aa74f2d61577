"""The row quantizer's instructions, barriers and moves, from its machine code: `--rows`, no GPU needed.

Counted over the whole code of one row, straight-line but for the slow paths of two divisions (some 120
instructions that only subnormal quotients take).
"""

import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import machine_code
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

import ahead_of_time

from convert_to_quant.kernels import activations
from convert_to_quant.kernels.triton import rowwise
from convert_to_quant.kernels.triton._arch import Arch, assume
from convert_to_quant.kernels.triton._operands import empty

CASES = [
    (k, rotation, activation, torch.bfloat16)
    for k in (3072, 12288)
    for rotation, activation in (
        (0, None), (256, None), (256, "gelu"), (256, "gelu_tanh"), (256, "swiglu"), (256, "rms_norm")
    )
]  # fmt: skip
"""(columns, rotation, input activation or a norm, type of the input)."""


AMD = re.compile(r"^\s+(?:v|s|ds|global|buffer)_\w+", re.MULTILINE)
"""An instruction in AMD's assembly."""


class Counts(NamedTuple):
    """What one thread does for a row, in instructions; spill in bytes."""

    registers: int
    spill: int
    each: float
    """Instructions of a warp per 32 elements."""
    barriers: int
    moves: int
    """Reads and writes of shared memory."""
    load: int
    store: int
    """Bytes of the narrowest read of the row, and of the narrowest write of its integers."""


def count(target: str, k: int, rotation: int, activation: str | None, dtype: torch.dtype) -> Counts:
    """Compile the quantizer of rows of k columns, the first configuration, and count."""
    launch, kernel, needs = _compiled(target, k, rotation, activation, dtype)
    code = machine_code.disassemble(kernel.asm["cubin"])
    names = Counter(machine_code.opcode(text) for text, _ in code)
    reached = machine_code.accesses(code)
    reached["STG", 4] -= 1  # the scale
    return Counts(
        needs.registers,
        max(needs.stack, needs.local),
        len(code) * 32 * launch.num_warps / k,
        names["BAR"],
        names["LDS"] + names["STS"] + names["LDSM"],
        min(size for (name, size), times in reached.items() if name == "LDG" and times),
        min(size for (name, size), times in reached.items() if name == "STG" and times),
    )


def each_on_amd(target: str, k: int, rotation: int, activation: str | None, dtype: torch.dtype) -> float:
    """Return a wave's instructions per element of a lane, as `Counts.each`, for one of AMD's targets."""
    launch, _, needs = _compiled(target, k, rotation, activation, dtype)
    lanes = ahead_of_time.TARGETS[target][1].warp_size
    return len(AMD.findall(needs.code)) * lanes * launch.num_warps / k


def _compiled(target: str, k: int, rotation: int, activation: str | None, dtype: torch.dtype):
    family, gpu, _ = ahead_of_time.TARGETS[target]
    meta = torch.device("meta")
    norm = None
    if activation == "rms_norm":
        activation, norm = None, rowwise.Norm(empty((k,), dtype, meta), 1e-6)
    rows = empty((4096, k * activations.halves(activation)), dtype, meta)
    q, scale = empty((4096, k), torch.int8, meta), empty((4096, 1), torch.float32, meta)
    with assume(Arch(family, target)):
        launch = rowwise.launch_rows(
            rowwise.CONFIGS[0], rows, q, scale, rotation=rotation, activation=activation, norm=norm
        )
    kernel = ahead_of_time.build(launch, gpu)
    return launch, kernel, ahead_of_time.needs(kernel, gpu)


HEAD = "| target | K | rotation | activation | registers | instructions | barriers | moves | load | store |"


def show(targets) -> None:
    """Print the table."""
    print(HEAD)
    print("| --- " * (HEAD.count("|") - 1) + "|")
    for target in targets:
        for k, rotation, activation, dtype in CASES:
            c = count(target, k, rotation, activation, dtype)
            print(
                f"| {target} | {k} | {rotation} | {activation or ''} | {c.registers} | {c.each:.1f} "
                f"| {c.barriers} | {c.moves} | {c.load} | {c.store} |",
                flush=True,
            )
