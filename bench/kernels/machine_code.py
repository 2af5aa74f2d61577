"""What the machine code of a compiled kernel does in one step of its main loop: no GPU needed.

Read from nvdisasm's listing: the loop with the most tensor-core instructions, and what it holds.
"""

import os
import re
import subprocess
import tempfile
from collections import Counter
from typing import NamedTuple

import triton

NVDISASM = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "nvdisasm")

_LABEL = re.compile(r"\s*(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);")
_BRANCH = re.compile(r"\bBRA(?:\.\S+)?\s.*?`\((\.L_x_\d+)\)")
_GUARD = re.compile(r"^@!?U?P\w+\s+")
REGISTER = re.compile(r"(?<!U)\bR(\d+)")
"""A register of a thread, by its number."""
PRODUCTS = ("IMMA", "HMMA", "IGMMA", "HGMMA", "UTCIMMA", "UTCHMMA")


class Loop(NamedTuple):
    """One warp's instructions in one pass of a kernel's main loop."""

    instructions: int
    products: int
    """Tensor-core instructions; on sm_90 those of a whole warp group."""
    product: str
    """The first of them with its shape: ``IMMA.16832.S8.S8``."""
    loads: int
    """Of matrices from shared memory to registers (LDSM), 512 bytes each."""
    barriers: int
    """At which the warps of a program wait for each other (BAR)."""
    in_flight: int | None
    """Asynchronous products that may be unfinished after the loop's wait: 0 waits for all; None: no wait."""


def disassemble(cubin: bytes) -> list[tuple[str, str | None]]:
    """Return (instruction, label that it carries) for all code of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([NVDISASM, "-c", file.name], capture_output=True, text=True, check=True)
    return parse(done.stdout)


def parse(listing: str) -> list[tuple[str, str | None]]:
    """Return (instruction, label that it carries) for nvdisasm's listing."""
    found, label = [], None
    for line in listing.splitlines():
        if marked := _LABEL.match(line):
            label = marked[1]
        elif (code := _INSTRUCTION.match(line)) and not code[1].startswith("@!PT "):  # that is never executed
            found.append((code[1].strip(), label))
            label = None
    return found


def main_loop(code: list[tuple[str, str | None]]) -> Loop | None:
    """Return the innermost loop with the most products; None for a kernel without products in a loop."""
    best = max(loops(code), key=_products, default=[])
    return _read(best) if _products(best) else None


def loops(code: list[tuple[str, str | None]]) -> list[list[str]]:
    """Return the instructions of every loop, without their guards."""
    places = {label: i for i, (_, label) in enumerate(code) if label}
    found = []
    for i, (text, _) in enumerate(code):
        back = _BRANCH.search(text)
        start = places.get(back[1], len(code)) if back else len(code)
        if start <= i:
            found.append([_GUARD.sub("", t) for t, _ in code[start : i + 1]])
    return found


def accesses(code: list[tuple[str, str | None]]) -> Counter:
    """Return how many instructions reach global memory, by kind and bytes: ("LDG", 16), ("STG", 2).."""
    found: Counter = Counter()
    for text, _ in code:
        name, *parts = _GUARD.sub("", text).split()[0].split(".")
        if name in ("LDG", "STG", "LDGSTS"):
            wide = next((int(p) // 8 for p in parts if p in ("64", "128")), None)
            small = next((1 for p in parts if p in ("U8", "S8")), 2 if {"U16", "S16"} & set(parts) else 4)
            found[name, wide or small] += 1
    return found


def opcode(text: str) -> str:
    """Return an instruction's name without guard and modifiers."""
    return _GUARD.sub("", text).split()[0].split(".")[0]


def _products(body: list[str]) -> int:
    return sum(t.split()[0].split(".")[0] in PRODUCTS for t in body)


def _read(body: list[str]) -> Loop:
    names = [t.split()[0] for t in body]
    heads = Counter(n.split(".")[0] for n in names)
    waits = [int(m[1], 0) for t in body if (m := re.search(r"WARPGROUP\.DEPBAR\.LE gsb0, (0x\w+)", t))]
    return Loop(
        len(body),
        _products(body),
        next(n for n in names if n.split(".")[0] in PRODUCTS),
        heads["LDSM"],
        heads["BAR"],
        min(waits) if waits else None,
    )
