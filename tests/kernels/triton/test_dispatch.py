"""How an op finds its device implementation, and what runs where there is none."""

import logging
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from convert_to_quant import kernels
from convert_to_quant.kernels import _library

pytest.importorskip("triton")

from convert_to_quant.kernels.triton import _arch

CUDA = torch.device("cuda", 0)


def test_import_loads_no_triton_and_touches_no_device():
    code = (
        "import sys, convert_to_quant.kernels, torch; "
        "assert 'triton' not in sys.modules and not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def op(monkeypatch):
    """An op whose device implementation is `op.device` and whose twin answers "eager"."""
    op = SimpleNamespace(device=lambda: "device")
    monkeypatch.setattr(_library, "_launcher", lambda target: lambda *a: op.device(*a))
    _library._say_once.cache_clear()
    op.run = _library.on_device("example", lambda *a: "eager", "example.example")
    return op


def test_device_implementation_serves(op):
    assert op.run() == "device"


def test_force_eager_holds_for_its_block_and_thread(op):
    elsewhere = []
    with kernels.force_eager():
        assert op.run() == "eager"
        other = threading.Thread(target=lambda: elsewhere.append(op.run()))
        other.start()
        other.join()
    assert elsewhere == ["device"]
    assert op.run() == "device"


def test_unsupported_falls_back_and_says_why_once(op, caplog):
    def refuse():
        raise _library.Unsupported("the moon is not full")

    op.device = refuse
    with caplog.at_level(logging.WARNING):
        assert [op.run(), op.run()] == ["eager", "eager"]
    assert [r.getMessage() for r in caplog.records] == [
        "example runs in plain PyTorch, not in Triton: the moon is not full"
    ]


def test_other_errors_are_not_swallowed(op):
    def fail():
        raise ValueError("shapes")

    op.device = fail
    with pytest.raises(ValueError, match="shapes"):
        op.run()


def test_without_triton_the_twin_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    _library._find.cache_clear()
    run = _library.on_device("example", lambda: "eager", "rowwise.quantize_rowwise")
    assert run() == "eager"
    _library._find.cache_clear()


def test_an_old_triton_is_refused_by_name(monkeypatch):
    import triton

    monkeypatch.setattr(triton, "__version__", "3.2.0")
    _library._find.cache_clear()
    with pytest.raises(_library.Unsupported, match=r"Triton 3\.2\.0 is older than 3\.3"):
        _library._launcher("rowwise.quantize_rowwise")
    monkeypatch.setattr(triton, "__version__", "3.3.0")
    _library._find.cache_clear()
    assert callable(_library._launcher("rowwise.quantize_rowwise"))


@pytest.mark.parametrize("name", ["fp32_precision", "allow_tf32"])
def test_twins_run_without_tf32(name):
    settings = torch.backends.cuda.matmul
    if not hasattr(settings, "fp32_precision"):
        pytest.skip("this PyTorch knows only allow_tf32")
    before = settings.fp32_precision
    try:
        setattr(settings, name, "tf32" if name == "fp32_precision" else True)
        inside = _library.on_device("example", lambda: settings.fp32_precision, None)()
        assert inside == "ieee"
        assert settings.fp32_precision == "tf32"
    finally:
        settings.fp32_precision = before


FAMILIES = [((8, 0), "sm80"), ((8, 6), "sm89"), ((8, 9), "sm89"), ((9, 0), "sm90"), ((10, 0), "sm100"),
            ((12, 0), "sm89")]  # fmt: skip


@pytest.mark.parametrize(("version", "family"), FAMILIES)
def test_family_of_a_gpu(monkeypatch, version, family):
    found = SimpleNamespace(major=version[0], minor=version[1], name="GPU", multi_processor_count=1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda d: found)
    monkeypatch.setattr(torch.version, "hip", None)
    assert _arch._arch_of.__wrapped__(CUDA).family == family


def test_turing_is_refused_by_name(monkeypatch):
    found = SimpleNamespace(major=7, minor=5, name="GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda d: found)
    with pytest.raises(_library.Unsupported, match="sm_75"):
        _arch._arch_of.__wrapped__(CUDA)


@pytest.mark.parametrize(
    ("family", "like"), [("sm90", "sm80"), ("sm100", "sm80"), ("cdna", "cdna"), ("rdna", "rdna")]
)
def test_without_tensor_descriptors_nvidia_takes_pointers(monkeypatch, family, like):
    """Triton 3.3 has none; AMD's tables, made for 64 KiB of shared memory, never needed them."""
    from convert_to_quant.kernels.triton import int8_mm

    monkeypatch.setattr(int8_mm, "TensorDescriptor", None)
    found, want = (
        int8_mm.candidates(_arch.Arch(f, f), (4096, 3072, 3072), True, None) for f in (family, like)
    )
    assert found == want


def test_a_model_with_these_ops_compiles_without_graph_breaks():
    q, scale = kernels.quantize_rowwise(torch.randn(32, 64), 16)

    def model(x):
        y = kernels.int8_linear(x, q, scale, rotation=16, input_activation="silu")
        z, s = kernels.quantize_rowwise(y, 16)
        return kernels.dequantize(z, s, torch.float32, 16) + kernels.int8_weight_only_linear(x, q, scale)

    x = torch.randn(5, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
