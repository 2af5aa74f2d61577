"""What is found out about a device before anything is launched there, and operands on several devices."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from convert_to_quant import kernels
from convert_to_quant.kernels import _library

pytest.importorskip("triton")

from convert_to_quant.kernels.triton import _arch, _probe, int8_linear, int8_mm
from convert_to_quant.kernels.triton._operands import empty
from convert_to_quant.kernels.triton._plan import Call, Plan
from convert_to_quant.kernels.triton._planned import planned
from convert_to_quant.kernels.triton._run import run

ROOT = Path(__file__).parents[3]
CPU, CUDA, META = (torch.device(d) for d in ("cpu", "cuda:0", "meta"))


class Kernel:
    """A kernel as the probe sees it: launching calls `work` with the output."""

    def __init__(self, work):
        self.launches, self._work = 0, work

    def __getitem__(self, grid):
        return self.launch

    def launch(self, out, n):
        self.launches += 1
        self._work(out)


def fails(out):
    raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")


PROBES = {
    "works": (lambda out: out.copy_(torch.arange(1, 17)), None),
    "cannot be built": (fails, r"RuntimeError: Failed to find C compiler\.\)$"),
    "wrong results": (lambda out: out.fill_(7), "wrong results"),
}


@pytest.mark.parametrize(("work", "reason"), PROBES.values(), ids=PROBES)
def test_one_launch_per_device_decides(work, reason, monkeypatch):
    kernel = Kernel(work)
    monkeypatch.setattr(_probe, "_count_kernel", kernel)
    monkeypatch.setattr(_probe, "_found", {})
    for _ in range(3):
        if reason is None:
            _probe.check(CPU)
        else:
            with pytest.raises(_library.Unsupported, match=reason):
                _probe.check(CPU)
    assert kernel.launches == 1


def test_want_of_memory_decides_nothing(monkeypatch):
    def full(out):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(_probe, "_found", {})
    monkeypatch.setattr(_probe, "_count_kernel", Kernel(full))
    with pytest.raises(torch.OutOfMemoryError):
        _probe.check(CPU)
    monkeypatch.setattr(_probe, "_count_kernel", Kernel(PROBES["works"][0]))
    _probe.check(CPU)


WITHOUT_COMPILER = """
import torch
from triton.backends.nvidia.driver import CudaDriver
from convert_to_quant.kernels import _library
from convert_to_quant.kernels.triton import _probe

CudaDriver.is_active = staticmethod(lambda: True)
try:
    _probe.check(torch.device("cpu"))
except _library.Unsupported as why:
    print(why)
"""


def test_triton_without_a_compiler_is_refused_by_name(tmp_path):
    """Triton's own driver, which must be built before it is first used."""
    pytest.importorskip("triton.backends.nvidia")
    clean = {"PATH": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER], cwd=ROOT, env=clean, capture_output=True, text=True
    )
    assert done.stdout.startswith("Triton cannot run a kernel on cpu ("), done.stderr[-2000:]
    assert done.stdout.count("\n") == 1


def test_a_device_that_triton_cannot_use_runs_the_twin(monkeypatch, caplog):
    monkeypatch.setattr(_probe, "_found", {CUDA: "no C compiler"})
    monkeypatch.setattr(_arch, "_arch_of", lambda device: _arch.Arch("sm90", "GPU"))
    monkeypatch.setattr(_library, "_launcher", lambda target: lambda x: _arch.arch_of(CUDA))
    _library._say_once.cache_clear()
    assert _library.on_device("example", lambda x: "eager", "example.example")(None) == "eager"
    assert "example runs in plain PyTorch, not in Triton: no C compiler" in caplog.text


@pytest.mark.parametrize("error", [ImportError("no triton"), OSError("libcuda.so.1: cannot open"), None])
def test_a_failed_import_is_tried_once(monkeypatch, error):
    tried = []

    def load(name):
        tried.append(name)
        if error is not None:
            raise error
        return SimpleNamespace(__version__="3.2.0")

    monkeypatch.setattr(_library.importlib, "import_module", load)
    _library._find.cache_clear()
    for _ in range(3):
        with pytest.raises(_library.Unsupported):
            _library._launcher("rowwise.quantize_rowwise")
    _library._find.cache_clear()
    assert tried == ["triton"]


@pytest.mark.parametrize(
    ("version", "int8"), [((8, 0), True), ((10, 0), True), ((10, 3), False), ((12, 0), True)]
)
def test_blackwell_ultra_has_no_int8_worth_having(monkeypatch, version, int8):
    found = SimpleNamespace(major=version[0], minor=version[1], name="GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda d: found)
    monkeypatch.setattr(torch.version, "hip", None)
    assert _arch._arch_of.__wrapped__(CUDA).int8 == int8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_without_int8_the_linear_is_a_float_one(dtype):
    x, q, scale = (
        empty((64, 128), dtype, META),
        empty((32, 128), torch.int8, META),
        empty((32, 1), torch.float32, META),
    )
    with _arch.assume(_arch.Arch("sm100", "B300", int8=False)):
        (choice,) = int8_linear.int8_linear.plan(x, q, scale).steps
        assert [type(c) for c in choice.candidates] == [int8_linear.FloatLinear]
        with pytest.raises(_library.Unsupported, match="sm_103"):
            int8_mm.int8_mm.plan(
                empty((64, 128), torch.int8, META), q, empty((64, 1), torch.float32, META), scale
            )


def launcher(x, qweight, weight_scale):
    """A launcher that calls nothing but notes what it was given."""
    out = empty(x.shape, x.dtype, x.device)
    return Plan([Call(lambda *given: SEEN.extend(given), out, weight_scale)], out)


SEEN: list[torch.Tensor] = []


def test_operands_on_different_devices_are_refused():
    x, q, scale = torch.empty(2, 3, device=META), torch.zeros(4, 3, dtype=torch.int8), torch.ones(4, 1)
    function = planned(launcher)
    with pytest.raises(
        ValueError, match=r"launcher: qweight is on cpu and x on meta; move them to one device"
    ):
        function(x, q, scale)
    with pytest.raises(ValueError, match=r"weight_scale is on cpu and x on meta"):
        function(x, q.to(META), scale)
    with pytest.raises(ValueError, match=r"qweight is on meta and x on cpu"):
        function(torch.empty(2, 3), q.to(META), scale)


def test_a_scalar_scale_on_the_cpu_is_copied_to_the_device():
    x, q = torch.empty(2, 3, device=META), torch.zeros(4, 3, dtype=torch.int8, device=META)
    SEEN.clear()
    args = x, q, torch.ones(1)
    run(planned(launcher)._plan(args), args)
    assert [t.device for t in SEEN] == [META, META]


BAD_SCALES = {"too few": (2, 1), "too many": (9, 1), "flat": (6,), "one too many axes": (1, 6, 1)}


@pytest.mark.parametrize("shape", BAD_SCALES.values(), ids=BAD_SCALES)
def test_an_activation_scale_of_the_wrong_size_is_refused_by_both(shape):
    """The launcher would have read beyond it."""
    x, q, scale, given = (
        torch.randn(2, 3, 64),
        torch.zeros(8, 64, dtype=torch.int8),
        torch.ones(8, 1),
        torch.ones(shape),
    )
    said = r"input_scale must have one element or shape \(2, 3, 1\)"
    with pytest.raises(ValueError, match=said):
        kernels.int8_linear(x, q, scale, input_scale=given)
    with pytest.raises(ValueError, match=said):
        int8_linear.int8_linear._plan((x, q, scale, None, 0, given))
