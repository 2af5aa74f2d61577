"""Bounds of the int8 products' tiles from their machine code, before anything is timed: `--static`.

For one step of the main loop, with as many programs on an SM as fit: how long the products take,
and what share of that time the instructions need to be issued and shared memory to be read and written.
Above 100 % that is the bound. L2 is what a step reads at full speed: a box that a cluster shares counts once
for all its CTAs. Latencies are not in it: a loop that waits for its products (in flight: 0) needs a second
program on the SM.

Packed weights (w4a8, w6a8, int4) are read as they are stored, decoded to int8 in registers and written to
shared memory as int8; with a table its 16 bytes per 16 weights are read from L1 as well.

Rates (datasheets): m16n8k32 in 8 cycles of a quarter SM on sm_80 and 16 on sm_86, 89 and 120; m64n128k32 in
64 cycles of an SM on sm_90, whose m16n8k32 is taken for half as fast; shared memory 128 bytes a cycle. Up to
64 rows memory is the bound, not these.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import machine_code
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

import ahead_of_time

from convert_to_quant.kernels.decode import Packed
from convert_to_quant.kernels.triton import int8_mm, packed_linear
from convert_to_quant.kernels.triton._arch import Arch, assume
from convert_to_quant.kernels.triton._gemm import TileConfig
from convert_to_quant.kernels.triton._gluon import GluonConfig
from convert_to_quant.kernels.triton._operands import empty

ROWS = (16, 64, 256, 512, 4096)
"""One M for each row of the tables."""


STORED = {"int8": 1.0, "w4a8": 0.5625, "w6a8": 0.8125, "int4": 0.5}
"""Kind of weight -> bytes of one, group scales included."""


Tile = TileConfig | GluonConfig


class Chip(NamedTuple):
    """An SM: cycles of a quarter for m16n8k32, KiB of shared memory, warps."""

    cycles: int
    shared: int
    warps: int


CHIPS = {
    "sm_80": Chip(8, 164, 64),
    "sm_89": Chip(16, 100, 48),
    "sm_90": Chip(8, 228, 64),
    "sm_120": Chip(16, 100, 48),
}
TARGETS = tuple(CHIPS)


class Bound(NamedTuple):
    """What one tile needs on one chip. issue, shared: as shares of the product's time."""

    kind: str
    tile: Tile
    registers: int
    spill: int
    kib: float
    programs: int
    loop: machine_code.Loop
    issue: float
    shared: float
    l2: float
    """Bytes per cycle and SM."""
    narrow: int
    """Global reads and writes of fewer than 16 bytes of the operands and the result."""

    @property
    def of_product(self) -> float:
        """Return the time of a step as a share of its products' time, latencies apart: 1 is the best."""
        return max(1.0, self.issue, self.shared)


def tiles(target: str, m: int, kind: str = "int8") -> list[Tile]:
    """Return the shipped tiles without split-K for M rows, the default first."""
    arch = Arch(ahead_of_time.TARGETS[target][0], target)
    if kind == "int8":
        found = int8_mm.candidates(arch, (m, 12288, 3072), True, None)
    else:
        weight = packed(12288, 3072, kind)
        found = packed_linear.engines(arch, m, weight.shape, weight.bits)
    return [t for t in found if isinstance(t, Tile) and getattr(t, "split_k", 1) == 1]


def bound(target: str, tile: Tile, m: int = 4096, n: int = 12288, k: int = 3072, kind: str = "int8") -> Bound:
    """Compile a tile for a target and read its bounds."""
    family, gpu, _ = ahead_of_time.TARGETS[target]
    launch = product(Arch(family, target), tile, (m, n, k), kind)
    kernel = ahead_of_time.build(launch, gpu)
    code = machine_code.disassemble(kernel.asm["cubin"])
    return _bound(CHIPS[target], kind, tile, ahead_of_time.needs(kernel, gpu), code)


def product(arch: Arch, tile: Tile, shape: tuple[int, int, int], kind: str):
    """Return the launch of a tile, with a bias, into bfloat16."""
    m, n, k = shape
    meta = torch.device("meta")
    a = empty((m, k), torch.int8, meta)
    scales = empty((m, 1), torch.float32, meta), empty((n, 1), torch.float32, meta)
    bias, out = empty((n,), torch.bfloat16, meta), empty((m, n), torch.bfloat16, meta)
    with assume(arch):
        epilogue = int8_mm.operands(*scales, bias, None, m, False)
        if kind == "int8":
            return int8_mm.product(tile, a, empty((n, k), torch.int8, meta), out, epilogue)[0]
        return packed_linear.launch_packed(tile, a, packed(n, k, kind), out, epilogue, arch)


def packed(n: int, k: int, kind: str) -> packed_linear.PackedWeight:
    """Return a packed weight without memory."""
    meta, bits = torch.device("meta"), 6 if kind == "w6a8" else 4
    group = 0 if kind == "int4" else 16
    return packed_linear.PackedWeight(
        empty((n, k * bits // 8), torch.int8, meta),
        bits,
        empty((n, k // 16), torch.uint8, meta) if group else None,
        empty((256, 16), torch.int8, meta) if kind == "w4a8" else None,
        Packed(n, k, group),
    )


def _bound(chip: Chip, kind: str, tile: Tile, needs, code) -> Bound:
    loop = machine_code.main_loop(code)
    assert loop is not None, f"no product in a loop: {tile.label}"
    warps, kib = tile.num_warps, needs.shared / 1024
    per_warp = -(-needs.registers // 8) * 8 * 32
    programs = max(1, min(65536 // (per_warp * warps), int(chip.shared // (kib + 1)), chip.warps // warps))
    weights = tile.block_n * tile.block_k
    written = tile.block_m * tile.block_k + weights
    if kind != "int8":
        written += int(2 * weights * (STORED[kind] + (kind == "w4a8")))
    if "x" in loop.product:
        groups, width = warps // 4, int(loop.product.split(".")[1].split("x")[1])
        product = loop.products * groups * width / 2
        moved = loop.products * groups * (64 + width) * 32 + written
    else:
        product = loop.products * chip.cycles * warps / 4
        moved = loop.loads * 512 * warps + written
    fetched = tile.block_m * tile.block_k / getattr(tile, "ctas", 1) + weights * STORED[kind]
    reached = machine_code.accesses(code)
    narrow = sum(c for (name, size), c in reached.items() if name in ("LDGSTS", "STG") and size < 16)
    issue, shared = loop.instructions * warps / 4, moved / 128
    spill = max(needs.stack, needs.local)
    return Bound(
        kind, tile, needs.registers, spill, kib, programs, loop, issue / product, shared / product,
        fetched / product, narrow,
    )  # fmt: skip


def row(target: str, m: int, b: Bound) -> str:
    """Return a line of the table."""
    loop = b.loop
    products = f"{loop.products} {loop.product.split('.S8')[0]}"
    flight = "-" if loop.in_flight is None else loop.in_flight
    values = (
        target, b.kind, m, b.tile.label.removesuffix(" split1"), b.registers, b.spill, f"{b.kib:.0f}",
        b.programs, loop.instructions, products, loop.loads, loop.barriers, flight, f"{b.issue:.0%}",
        f"{b.shared:.0%}", f"{b.l2:.0f}", b.narrow,
    )  # fmt: skip
    return f"| {' | '.join(map(str, values))} |"


HEAD = (
    "| target | weight | M | tile | registers | spill | KiB | programs | instructions | products | loads "
    "| barriers | in flight | issue | shared | L2 B/clk | narrow |"
)


def show(targets) -> None:
    """Print the table of all shipped tiles that multiply in a warp-level loop."""
    print(HEAD)
    print("| --- " * (HEAD.count("|") - 1) + "|")
    for target in targets:
        for kind in STORED:
            for m in ROWS:
                for tile in tiles(target, m, kind):
                    print(row(target, m, bound(target, tile, m, kind=kind)), flush=True)
