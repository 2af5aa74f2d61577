"""Every kernel and shipped configuration, compiled for GPUs that are not here.

Asserts int8 tensor-core instructions in every product, no spilled register (with Triton 3.9, for
which the tables are made), and shared memory within the device's limit. Two worker processes
share the work.
"""

import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[3] / "bench" / "kernels"))

import ahead_of_time as aot
import machine_code
import triton
import triton.language as tl
from packed_launches import SOME
from triton.backends import backends

TRITON = tuple(int(n) for n in triton.__version__.split(".")[:2])
SPILL = 0 if TRITON >= (3, 9) else 640
"""Bytes a thread may spill. 608 is the most seen (3.7, a rotation by 1024); docs/kernels.md has the rest."""

WANTED = {
    "sm_80": {"mma s8"},
    "sm_89": {"mma s8"},
    "sm_90": {"wgmma s8", "mma s8"},
    "sm_100": {"tcgen05 i8", "mma s8"},
    "sm_120": {"mma s8"},
    "gfx942": {"mfma i8"},
    "gfx1100": {"wmma i8"},
}
JOBS = [
    (target, case)
    for target in aot.TARGETS
    for case in aot.cases_of(target)
    if not (target == "gfx1100" and case == "rowwise 1024")  # served by the eager twin
] + list(SOME)


@pytest.mark.parametrize(("target", "case"), JOBS, ids=[f"{t}-{c}".replace(" ", "_") for t, c in JOBS])
def test_compiles_without_spills(target, case):
    vendor = "amd" if target.startswith("gfx") else "nvidia"
    if vendor not in backends:
        pytest.skip(f"this Triton has no {vendor} back end")
    if vendor == "amd" and not aot.links_amd():
        pytest.skip("Triton before 3.5 links AMD code with ROCm's ld.lld, which is not here")
    limit = aot.TARGETS[target][2]
    for row in aot.compile_case(target, case):
        needs = f"{row.registers} | {row.spill} | {row.shared / 1024:.1f}"
        print(f"{target} | {row.kernel} | {row.config} | {needs}")
        assert row.spill <= SPILL, f"{row.kernel} {row.config} spills {row.spill} bytes"
        assert row.shared <= limit * 1024, f"{row.kernel} {row.config} needs {row.shared} bytes"
        if row.kernel in ("_int8_mm_kernel", "_packed_mm_kernel"):
            assert set(row.instructions) & WANTED[target], f"no int8 tensor-core instruction: {row.config}"
            large = "BLOCK_M=128" in row.config and "DESCRIPTORS" in row.config
            if large and target == "sm_90":
                assert "wgmma s8" in row.instructions
            if large and target == "sm_100" and TRITON >= (3, 8):
                assert "tcgen05 i8" in row.instructions
        if row.kernel == "_int8_mm_kernel" and vendor == "nvidia" and "unaligned" not in case:
            check_machine_code(row)
        if row.kernel == "_int8_weight_only_kernel" and target == "sm_100" and "PLANES=1" not in row.config:
            assert "tcgen05 f16" not in row.instructions, f"planes race in tensor memory: {row.config}"


def check_machine_code(row: aot.Resources) -> None:
    """16 bytes at a time of operands and results; in the main loop no more loads and waits than are known."""
    code = machine_code.disassemble(row.cubin)
    narrow = {k: n for k, n in machine_code.accesses(code).items() if k[0] in ("LDGSTS", "STG") and k[1] < 16}
    assert narrow == {}, f"{row.config}: global accesses of under 16 bytes"
    loop = machine_code.main_loop(code)
    assert loop is not None, f"no product in a loop: {row.config}"
    if loop.product.startswith("IMMA"):  # matrices loaded into registers are used more than once
        reuse = 2 if row.tile[0] >= 64 else 1
        assert loop.products >= reuse * loop.loads, f"{row.config}: {loop}"
        # Triton before 3.8 multiplies so on sm_100 what TMA brings, a barrier before each of its loads.
        most = 4 if "DESCRIPTORS" in row.config and TRITON < (3, 8) else 2
        assert loop.barriers <= most, f"{row.config}: {loop}"
    if loop.product.startswith("IGMMA"):  # from shared memory; Triton waits for each (bench/NOTES.md)
        assert (loop.loads, loop.in_flight) == (0, 0), f"{row.config}: {loop}"
        assert loop.barriers <= 4, f"{row.config}: {loop}"


@pytest.mark.skipif(TRITON < (3, 9), reason="the rule is this Triton's own")
def test_half_floats_stay_half_in_older_tritons(monkeypatch, tmp_path):
    """Before 3.9 a bare constant is a float32 tensor to minimum and maximum: kernels give theirs a type."""

    def older(function):
        def call(x, y, *args, _semantic=None, **kwargs):
            x, y = _semantic.to_tensor(x), _semantic.to_tensor(y)
            return function(x, y, *args, _semantic=_semantic, **kwargs)

        return tl.core.builtin(call)

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # code for other rules is not to be found elsewhere
    for name in ("minimum", "maximum"):
        monkeypatch.setattr(tl, name, older(getattr(tl, name)))
    (row,) = aot.compile_case("sm_80", "decode 6")
    assert row.kernel == "_decode_kernel"


def test_recording_leaves_the_interpreter_alone():
    """The compile tests see compiled kernels: the interpreter was not switched on in this process."""
    from convert_to_quant.kernels.triton import rowwise

    assert type(rowwise._quantize_rowwise_kernel).__name__ == "JITFunction"
    assert "convert_to_quant.kernels" in sys.modules
