"""What LDLQ and coordinate descent do for a column of a block, from machine code: `--columns`, no GPU needed.

A block of 128 columns is 8 panels of 16, before which 28 products of 16 earlier columns each are added up.
Counted are one warp's instructions in both loops, slow paths of divisions included, over the 128 columns.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import machine_code

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

import ahead_of_time

from convert_to_quant.kernels.triton._arch import Arch, assume
from convert_to_quant.kernels.triton._plan import every_launch

OPS = ("ldlq", "descent")
COLUMNS, PANELS, PRODUCTS = 128, 8, 28


class Counts(NamedTuple):
    """What one warp does for a column of its program's 32 rows; spill in bytes."""

    warps: int
    registers: int
    spill: int
    each: float
    """Instructions."""
    barriers: float
    wide: int
    """Instructions of the panels' loop that compare 64 bits."""


def count(target: str, op: str) -> list[Counts]:
    """Compile an op's configurations for blocks of 128 columns, the default first, and count."""
    family, gpu, _ = ahead_of_time.TARGETS[target]
    with assume(Arch(family, target)):
        launches = list(every_launch(ahead_of_time.cases()[op]()))
    return [_count(launch, gpu) for launch in launches]


def _count(launch, gpu) -> Counts:
    kernel = ahead_of_time.build(launch, gpu)
    needs = ahead_of_time.needs(kernel, gpu)
    loops = machine_code.loops(machine_code.disassemble(kernel.asm["cubin"]))
    panel = max(loops, key=len)
    product = max((loop for loop in loops if loop is not panel), key=len)

    def executed(wanted) -> float:
        outer, inner = (sum(map(wanted, loop)) for loop in (panel, product))
        return (PANELS * (outer - inner) + PRODUCTS * inner) / COLUMNS

    return Counts(
        launch.num_warps,
        needs.registers,
        max(needs.stack, needs.local),
        executed(lambda text: True),
        executed(lambda text: machine_code.opcode(text) == "BAR"),
        sum(".EX" in text.split()[0] for text in panel),
    )


def show(targets) -> None:
    """Print the table."""
    print("| target | op | warps | registers | spill | instructions a column | barriers a column |")
    print("| --- " * 7 + "|")
    for target in targets:
        for op in OPS:
            for c in count(target, op):
                values = target, op, c.warps, c.registers, c.spill, f"{c.each:.1f}", f"{c.barriers:.2f}"
                print(f"| {' | '.join(map(str, values))} |", flush=True)
