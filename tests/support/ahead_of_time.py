"""Compile recorded kernel launches for GPUs that are not here, and read what they need.

The launchers plan for operands without tensors, inside ``_arch.assume``: what is compiled, with
which arguments and options, is what they would launch with any of their candidates.
"""

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass

import packed_launches
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from convert_to_quant.kernels.triton._operands import Operand, empty

TARGETS = {
    "sm_80": ("sm80", GPUTarget("cuda", 80, 32), 163),
    "sm_89": ("sm89", GPUTarget("cuda", 89, 32), 99),
    "sm_90": ("sm90", GPUTarget("cuda", 90, 32), 227),
    "sm_100": ("sm100", GPUTarget("cuda", 100, 32), 227),
    "sm_120": ("sm89", GPUTarget("cuda", 120, 32), 99),
    "gfx942": ("cdna", GPUTarget("hip", "gfx942", 64), 64),
    "gfx1100": ("rdna", GPUTarget("hip", "gfx1100", 32), 64),
}
"""Name -> (family, compiler target, KiB of shared memory a program may use)."""

_TYPES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16",
    torch.int8: "i8", torch.uint8: "u8", torch.int32: "i32",
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
    cubin: bytes = b""
    """NVIDIA's machine code."""


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
        elif isinstance(value, Operand) or (isinstance(value, int) and value % 16 == 0):
            attrs[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attrs


def _kind(value) -> str:
    if isinstance(value, Operand):
        return "*" + _TYPES[value.dtype]
    if isinstance(value, int):
        return "constexpr" if value == 1 else ("i32" if abs(value) < 2**31 else "i64")
    shape = ",".join(str(s) for s in value.block_shape)
    layout = "" if value.layout is None else f",{value.layout!r}"
    return f"tensordesc<{_TYPES[value.base.dtype]}[{shape}]{layout}>"


def identity(launch) -> tuple:
    """What the compiler sees of a launch: equal launches compile to the same code."""
    signature, constants, attrs = specialise(launch)
    options = tuple(sorted(launch.keywords().items()))
    shown = tuple((k, repr(v)) for k, v in constants.items())
    return launch.kernel.__name__, tuple(signature.items()), shown, tuple(attrs), options


def build(launch, target: GPUTarget):
    """Compile for `target`, without a device; Triton's compiled kernel."""
    signature, constants, attrs = specialise(launch)
    source = ASTSource
    if getattr(launch.kernel, "is_gluon", bool)():
        from triton.experimental.gluon._runtime import GluonASTSource as source
    source = source(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attrs)
    return triton.compile(source, target=target, options=launch.keywords())


def compile_launch(launch, target: GPUTarget) -> Compiled:
    """Compile for `target`, without a device."""
    return needs(build(launch, target), target)


def needs(kernel, target: GPUTarget) -> Compiled:
    """Return what a compiled kernel needs."""
    if target.backend == "hip":
        text = kernel.asm["amdgcn"]
        keys = ("vgpr_count", "private_segment_fixed_size", "vgpr_spill_count")
        return Compiled(*(_amd(text, key) for key in keys), kernel.metadata.shared, text)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [_CUOBJDUMP, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True)
    numbers = re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", usage.stdout)
    found = (int(n) for n in numbers.groups())
    return Compiled(*found, kernel.metadata.shared, kernel.asm["ptx"], kernel.asm["cubin"])


def links_amd() -> bool:
    """Whether AMD code can be linked here: before Triton 3.5 that takes ROCm's ld.lld."""
    from triton.backends.amd.compiler import HIPBackend

    if not hasattr(HIPBackend, "path_to_rocm_lld"):
        return True
    try:
        return bool(HIPBackend.path_to_rocm_lld())
    except Exception:  # Triton raises nothing narrower
        return False


def _amd(text: str, key: str) -> int:
    return int(re.search(rf"\.{key}:\s+(\d+)", text)[1])


INSTRUCTIONS = {
    "wgmma s8": r"wgmma\.mma_async\S*\.s32\.s8\.s8",
    "mma s8": r"mma\.sync\S*m16n8k32\S*\.s8\.s8",
    "tcgen05 i8": r"tcgen05\.mma\S*kind::i8",
    "tcgen05 f16": r"tcgen05\.mma\S*kind::f16",
    "mfma i8": r"v_mfma_i32_\S*i8",
    "wmma i8": r"v_wmma_i32_\S*iu8",
}


@dataclass(frozen=True)
class Resources:
    """One row of the resource table: kernel, its configuration, and what it needs."""

    kernel: str
    config: str
    registers: int
    spill: int
    shared: int
    instructions: tuple[str, ...]
    tile: tuple[int, int]
    """Rows and columns of the result that a program makes, (0, 0) for kernels without."""
    cubin: bytes


def describe(launch) -> str:
    """Warps, stages and the compile-time arguments that tell one configuration from another."""
    names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "BLOCKS_M", "BLOCKS_K", "SPLIT_K", "EVEN_K", "DESCRIPTORS",
             "BLOCKWISE", "BLOCKS", "CTAS", "MODE", "ROTATION", "CHUNKS", "PLANES", "ACTIVATION")  # fmt: skip
    shown = [f"{n}={launch.args[n]}" for n in names if launch.args.get(n) not in (None, False)]
    return f"warps={launch.num_warps} stages={launch.num_stages} " + " ".join(shown)


def compile_case(target_name: str, case: str) -> list[Resources]:
    """Compile every distinct launch of a case for a target."""
    from convert_to_quant.kernels.triton._arch import Arch, assume
    from convert_to_quant.kernels.triton._plan import every_launch

    family, target, _ = TARGETS[target_name]
    with assume(Arch(family, target_name)):
        launches = list(every_launch({**cases(), **packed_launches.cases()}[case]()))
    rows, seen = [], set()
    for launch in launches:
        if identity(launch) in seen:
            continue
        seen.add(identity(launch))
        done = compile_launch(launch, target)
        found = tuple(name for name, pattern in INSTRUCTIONS.items() if re.search(pattern, done.code))
        spill = max(done.stack, done.local)
        name = launch.kernel.__name__
        tile = launch.args.get("BLOCK_M", 0), launch.args.get("BLOCK_N", 0)
        shown = describe(launch)
        rows.append(Resources(name, shown, done.registers, spill, done.shared, found, tile, done.cubin))
    return rows


def _meta(*shape, dtype=torch.bfloat16):
    return empty(shape, dtype, torch.device("meta"))


def cases() -> dict:
    """Case name -> a function that gives steps: together every kernel and shipped configuration."""
    from convert_to_quant.kernels.triton import (
        blockwise,
        dequantize,
        descent,
        int8_linear,
        int8_mm,
        ldlq,
        rotation,
        rowwise,
        tensorwise,
        weight_only,
    )  # fmt: skip

    i8, f32 = torch.int8, torch.float32

    def mm(m, n=12288, k=3072, activation="gelu"):
        scales = _meta(m, 1, dtype=f32), _meta(n, 1, dtype=f32)
        a, b = _meta(m, k, dtype=i8), _meta(n, k, dtype=i8)
        return int8_mm.int8_mm.plan(a, b, *scales, _meta(n), torch.bfloat16, activation).steps

    def with_residual(m, n=12288, k=3072):
        weight = _meta(n, k, dtype=i8), _meta(n, 1, dtype=f32), _meta(n)
        q, scale = _meta(m, k, dtype=i8), _meta(m, 1, dtype=f32)
        more = torch.bfloat16, None, None, 0, _meta(m, n), _meta(n)
        return int8_linear.int8_linear_prequantized.plan(q, scale, *weight, *more).steps

    def normed(k, rotation, dtype=torch.bfloat16):
        norm = rowwise.Norm(_meta(k), 1e-6)
        return rowwise.quantize_rows(_meta(4096, k, dtype=dtype), rotation, None, None, norm).steps

    def mm_blocks(m, n=12288, k=3072):
        scales = _meta(m, -(-k // 128), dtype=f32), _meta(-(-n // 128), -(-k // 128), dtype=f32)
        return int8_mm.int8_mm.plan(
            _meta(m, k, dtype=i8), _meta(n, k, dtype=i8), *scales, _meta(n), torch.bfloat16
        ).steps

    def w8a16(m, rotation, dtype=torch.bfloat16, k=3072):
        w, scale = _meta(12288, k, dtype=i8), _meta(12288, 1, dtype=f32)
        return weight_only.int8_weight_only_linear.plan(
            _meta(m, k, dtype=dtype), w, scale, _meta(12288), rotation
        ).steps

    def w8a16_gelu(m, rotation):
        out, scale = _meta(m, 12288), _meta(12288, 1, dtype=f32)
        return weight_only.multiply(
            _meta(m, 3072), _meta(12288, 3072, dtype=i8), scale, None, rotation, out, "gelu"
        )

    def w8a16_blocks():
        w, scale = _meta(12288, 3072, dtype=i8), _meta(96, 24, dtype=f32)
        return weight_only.int8_weight_only_linear.plan(_meta(1, 3072), w, scale).steps

    def update():
        block, square = _meta(4096, 128, dtype=f32), _meta(128, 128, dtype=f32)
        return ldlq.ldlq_.plan(_meta(4096, 128, dtype=i8), block, square, _meta(4096, 1, dtype=f32)).steps

    def descend():
        block, square = _meta(4096, 128, dtype=f32), _meta(128, 128, dtype=f32)
        return descent.descend_.plan(
            _meta(4096, 128, dtype=i8), block, square, _meta(4096, 1, dtype=f32)
        ).steps

    q, rows, blocks = _meta(4096, 3072, dtype=i8), _meta(4096, 1, dtype=f32), _meta(32, 24, dtype=f32)
    return {
        "rowwise": lambda: rowwise.quantize_rowwise.plan(_meta(4096, 12288)).steps,
        "rowwise 16": lambda: rowwise.quantize_rowwise.plan(_meta(4096, 3072), 16).steps,
        "rowwise 64 ragged": lambda: rowwise.quantize_rowwise.plan(_meta(4096, 640), 64).steps,
        "rowwise 256": lambda: rowwise.quantize_rowwise.plan(_meta(4096, 12288), 256).steps,
        "rowwise 256 float32": lambda: rowwise.quantize_rowwise.plan(_meta(4096, 3072, dtype=f32), 256).steps,
        "rowwise 256 two reads": lambda: rowwise.quantize_rowwise.plan(_meta(4096, 65536), 256).steps,
        "rowwise 256 widest": lambda: rowwise.quantize_rowwise.plan(_meta(4096, 32768), 256).steps,
        "rowwise 256 gelu": lambda: rowwise.quantize_rows(_meta(4096, 12288), 256, None, "gelu").steps,
        "rowwise 256 swiglu": lambda: (
            rowwise.quantize_rows(_meta(4096, 2 * 12288), 256, None, "swiglu").steps
        ),
        "rowwise 256 norm": lambda: normed(12288, 256),
        "rowwise 256 norm float32": lambda: normed(3072, 256, f32),
        "rowwise 256 norm two reads": lambda: normed(65536, 256),
        "rowwise 1024": lambda: rowwise.quantize_rowwise.plan(_meta(4096, 12288), 1024).steps,
        "tensorwise 256": lambda: tensorwise.quantize_tensorwise.plan(_meta(4096, 3072), None, 256).steps,
        "blockwise 128x128": lambda: blockwise.quantize_blockwise.plan(_meta(4096, 3072), 128, 128).steps,
        "blockwise 1x128": lambda: blockwise.quantize_blocks(_meta(4096, 3072), 1, 128, "silu").steps,
        "blockwise 1x128 swiglu": lambda: (
            blockwise.quantize_blocks(_meta(4096, 6144), 1, 128, "swiglu").steps
        ),
        "rotate 256": lambda: rotation.rotate.plan(_meta(4096, 3072), 256).steps,
        "rotate 1024": lambda: rotation.rotate.plan(_meta(4096, 3072), 1024).steps,
        "dequantize": lambda: dequantize.dequantize.plan(q, rows, torch.bfloat16).steps,
        "dequantize 256": lambda: dequantize.dequantize.plan(q, rows, torch.bfloat16, 256).steps,
        "dequantize blocks": lambda: dequantize.dequantize.plan(q, blocks, torch.bfloat16).steps,
        "ldlq": update,
        "descent": descend,
        "int8_mm 1": lambda: mm(1),
        "int8_mm 64": lambda: mm(64),
        "int8_mm 256": lambda: mm(256),
        "int8_mm 512": lambda: mm(512),
        "int8_mm 4096": lambda: mm(4096),
        "int8_mm 4096 residual": lambda: with_residual(4096),
        "int8_mm 4096 plain": lambda: mm(4096, activation=None),
        "int8_mm 4096 ragged": lambda: mm(4096, 3360, 3360, None),
        "int8_mm 4096 unaligned": lambda: mm(4093, 4099, 3070, None),
        "int8_mm blocks 1": lambda: mm_blocks(1),
        "int8_mm blocks 4096": lambda: mm_blocks(4096),
        "int8_mm blocks ragged": lambda: mm_blocks(4096, 3360, 3360),
        "weight_only 1": lambda: w8a16(1, 0),
        "weight_only 16 rotated": lambda: w8a16(16, 256),
        "weight_only 64 rotated": lambda: w8a16(64, 256),
        "weight_only 16 float32": lambda: w8a16(16, 0, f32),
        "weight_only 16 unaligned": lambda: w8a16(16, 0, torch.bfloat16, 3070),
        "weight_only blocks": w8a16_blocks,
        "weight_only 16 gelu": lambda: w8a16_gelu(16, 0),
        "weight_only 16 rotated gelu": lambda: w8a16_gelu(16, 256),
    }


FULL = ("sm_80",)
"""The target that compiles every case, the oldest: it spills first."""

PRODUCTS = ("sm_90", "sm_100", "sm_120")
"""Targets that compile products besides `BRIEF`: theirs have tiles or instructions of their own. Ragged ones
and those with a residual differ in the epilogue alone, which is the same for all."""

BRIEF = (
    "rowwise", "rowwise 256", "rowwise 1024", "blockwise 128x128", "rotate 256", "dequantize 256", "ldlq",
    "descent", "int8_mm 1", "int8_mm 64", "int8_mm 4096", "int8_mm blocks 4096", "weight_only 16 rotated",
)  # fmt: skip
"""What every target compiles. The rest are the same launches on each target, for another chip."""


def cases_of(target_name: str) -> list[str]:
    """Return the cases that are compiled for a target."""
    if target_name in FULL:
        return list(cases())
    products = ("int8_mm", "weight_only") if target_name in PRODUCTS else ()
    wanted = [c for c in cases() if c.startswith(products) and not c.endswith((" ragged", " residual"))]
    return [case for case in cases() if case in BRIEF or case in wanted]
