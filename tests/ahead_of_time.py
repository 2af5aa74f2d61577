"""Compile recorded kernel launches for GPUs that are not here, and read what they need.

The launchers run on meta tensors inside ``_launch.record``: what is compiled, with which
arguments and options, is what they would launch.
"""

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": ("sm80", GPUTarget("cuda", 80, 32), 163),
    "sm_89": ("sm80", GPUTarget("cuda", 89, 32), 99),
    "sm_90": ("sm90", GPUTarget("cuda", 90, 32), 227),
    "sm_100": ("sm100", GPUTarget("cuda", 100, 32), 227),
    "gfx942": ("cdna", GPUTarget("hip", "gfx942", 64), 64),
    "gfx1100": ("rdna", GPUTarget("hip", "gfx1100", 32), 64),
}
"""Name -> (family, compiler target, KiB of shared memory a program may use)."""

_TYPES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16",
    torch.int8: "i8", torch.int32: "i32",
}  # fmt: skip
_CUOBJDUMP = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")


@dataclass(frozen=True)
class Compiled:
    """What one compiled launch needs; stack and local are bytes of spill, shared is in bytes."""

    registers: int
    stack: int
    local: int
    shared: int
    code: str
    """PTX or AMDGCN text."""


def specialise(launch):
    """(signature, constexprs, attrs) as the JIT would specialise this launch's arguments."""
    signature, constants, attrs = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.args[parameter.name]
        kind = "constexpr"
        if not parameter.is_constexpr and value is not None:
            kind = _kind(value)
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[(index,)] = value
        elif isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attrs[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attrs


def _kind(value) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + _TYPES[value.dtype]
    if isinstance(value, int):
        return "constexpr" if value == 1 else ("i32" if abs(value) < 2**31 else "i64")
    shape = ",".join(str(s) for s in value.block_shape)
    return f"tensordesc<{_TYPES[value.base.dtype]}[{shape}]>"


def identity(launch) -> tuple:
    """What the compiler sees of a launch: equal launches compile to the same code."""
    signature, constants, attrs = specialise(launch)
    options = tuple(sorted(launch.keywords().items()))
    shown = tuple((k, repr(v)) for k, v in constants.items())
    return launch.kernel.__name__, tuple(signature.items()), shown, tuple(attrs), options


def compile_launch(launch, target: GPUTarget) -> Compiled:
    """Compile for `target`, without a device."""
    signature, constants, attrs = specialise(launch)
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attrs)
    kernel = triton.compile(source, target=target, options=launch.keywords())
    if target.backend == "hip":
        text = kernel.asm["amdgcn"]
        found = {key: _amd(text, key) for key in ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")}
        return Compiled(
            found["vgpr_count"], found["private_segment_fixed_size"], found["vgpr_spill_count"],
            kernel.metadata.shared, text,
        )  # fmt: skip
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run([_CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True)
    numbers = re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", usage.stdout)
    return Compiled(*(int(n) for n in numbers.groups()), kernel.metadata.shared, kernel.asm["ptx"])


def _amd(text: str, key: str) -> int:
    return int(re.search(rf"\.{key}:\s+(\d+)", text)[1])
