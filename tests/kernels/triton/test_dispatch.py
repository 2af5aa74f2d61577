"""How an op finds its device implementation, and how a configuration is chosen and remembered."""

import json
import logging
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from convert_to_quant import kernels
from convert_to_quant.kernels import _library

pytest.importorskip("triton")

from convert_to_quant.kernels.triton import _arch, _tuning

CUDA = torch.device("cuda", 0)
ARCH = _arch.Arch("sm90", "Some GPU 80GB")


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
    _library._launcher.cache_clear()
    run = _library.on_device("example", lambda: "eager", "rowwise.quantize_rowwise")
    assert run() == "eager"
    _library._launcher.cache_clear()


def test_an_old_triton_is_refused_by_name(monkeypatch):
    import triton

    monkeypatch.setattr(triton, "__version__", "3.2.0")
    _library._launcher.cache_clear()
    with pytest.raises(_library.Unsupported, match=r"Triton 3\.2\.0 is older than 3\.3"):
        _library._launcher("rowwise.quantize_rowwise")
    monkeypatch.setattr(triton, "__version__", "3.3.0")
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


@pytest.mark.parametrize(("version", "family"), [((8, 0), "sm80"), ((8, 9), "sm80"), ((9, 0), "sm90"),
                                                 ((10, 0), "sm100"), ((12, 0), "sm80")])  # fmt: skip
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


class Option(NamedTuple):
    label: str
    time: float | None
    handicap: float = 1.0


@pytest.fixture
def tuner(monkeypatch, tmp_path):
    """`choose` with measured times taken from the options; tuner.measured lists what was timed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CONVERT_TO_QUANT_AUTOTUNE", raising=False)
    measured = []

    def measure(option, run, device):
        measured.append(option.label)
        return option.time

    monkeypatch.setattr(_tuning, "_measure", measure)
    monkeypatch.setattr(_tuning, "_capturing", lambda device: False)
    _tuning.forget()
    yield SimpleNamespace(
        measured=measured,
        pick=lambda *options, key="op m16": getattr(
            _tuning.choose(ARCH, key, options, lambda o: None, CUDA), "label", None
        ),
        path=_tuning.cache_path(ARCH),
    )
    _tuning.forget()


SLOW, FAST, BROKEN = Option("slow", 9.0), Option("fast", 5.0), Option("broken", None)


def test_the_fastest_is_chosen_and_a_second_process_does_not_measure(tuner):
    assert tuner.pick(SLOW, FAST, BROKEN) == "fast"
    assert tuner.measured == ["slow", "fast", "broken"]
    stored = json.loads(tuner.path.read_text())
    assert list(stored.values()) == [{"choice": "fast", "microseconds": {"fast": 5.0, "slow": 9.0}}]
    assert next(iter(stored)).startswith("op m16 #")
    _tuning.forget()
    assert tuner.pick(SLOW, FAST, BROKEN) == "fast"
    assert len(tuner.measured) == 3
    assert [p.name for p in tuner.path.parent.iterdir()] == [tuner.path.name]


def test_a_handicap_needs_a_clear_win(tuner):
    assert tuner.pick(Option("int8", 100.0), Option("float", 97.0, 1.05)) == "int8"
    assert tuner.pick(Option("int8", 100.0), Option("float", 90.0, 1.05), key="other") == "float"


def test_the_variable_is_read_at_each_call(tuner, monkeypatch):
    monkeypatch.setenv("CONVERT_TO_QUANT_AUTOTUNE", "0")
    assert tuner.pick(SLOW, FAST) == "slow"
    assert not tuner.measured
    monkeypatch.setenv("CONVERT_TO_QUANT_AUTOTUNE", "1")
    assert tuner.pick(SLOW, FAST) == "fast"


def test_nothing_is_measured_or_kept_while_a_graph_is_captured(tuner, monkeypatch):
    monkeypatch.setattr(_tuning, "_capturing", lambda device: True)
    assert tuner.pick(SLOW, FAST) is None
    assert not tuner.measured
    assert not tuner.path.exists()


@pytest.mark.parametrize("content", ["", "[1]", '{"ENTRY": 3}', '{"ENTRY": {"choice": "gone"}}'])
def test_a_useless_cache_is_measured_again(tuner, content):
    entry = _tuning._entry("op m16", (SLOW, FAST))
    tuner.path.parent.mkdir(parents=True)
    tuner.path.write_text(content.replace("ENTRY", entry))
    assert tuner.pick(SLOW, FAST) == "fast"
    assert json.loads(tuner.path.read_text())[entry]["choice"] == "fast"


def test_sets_of_candidates_do_not_share_an_entry(tuner):
    """Aligned and unaligned calls of one shape have different tiles; alternating must not measure again."""
    aligned, unaligned = (SLOW, FAST), (Option("bytes", 20.0), Option("more bytes", 30.0))
    for _ in range(3):
        assert tuner.pick(*aligned) == "fast"
        assert tuner.pick(*unaligned) == "bytes"
    assert len(tuner.measured) == 4


def test_an_unwritable_cache_costs_a_warning_only(tuner, caplog):
    tuner.path.parent.parent.mkdir(parents=True, exist_ok=True)
    tuner.path.parent.write_text("a file where the folder should be")
    assert tuner.pick(SLOW, FAST) == "fast"
    assert "not kept" in caplog.text


@pytest.mark.parametrize(("m", "bucket"), [(1, 16), (17, 64), (256, 256), (4097, 16384), (75600, 16384)])
def test_buckets(m, bucket):
    assert _tuning.bucket(m) == bucket


def test_a_model_with_these_ops_compiles_without_graph_breaks():
    q, scale = kernels.quantize_rowwise(torch.randn(32, 64), 16)

    def model(x):
        y = kernels.int8_linear(x, q, scale, rotation=16, input_activation="silu")
        z, s = kernels.quantize_rowwise(y, 16)
        return kernels.dequantize(z, s, torch.float32, 16) + kernels.int8_weight_only_linear(x, q, scale)

    x = torch.randn(5, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


class FakeEvent:
    """A device event on a clock that the runs advance."""

    now = 0.0

    def __init__(self, enable_timing):
        self.at = 0.0

    def record(self):
        self.at = FakeEvent.now

    def elapsed_time(self, other):
        return other.at - self.at


@pytest.mark.parametrize("error", [RuntimeError("no kernel"), None], ids=["fails", "runs"])
def test_measuring_takes_the_median_and_leaves_out_what_cannot_run(monkeypatch, error):
    module = SimpleNamespace(Event=FakeEvent, synchronize=lambda device: None)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    monkeypatch.setattr(_tuning, "FLUSH", 16)
    steps = iter([100.0, 3.0, 1.0, 2.0, 9.0, 2.5])

    def run(option):
        if error:
            raise error
        FakeEvent.now += next(steps)

    found = _tuning._measure(FAST, run, torch.device("cpu"))
    assert found == (None if error else 2500.0)
