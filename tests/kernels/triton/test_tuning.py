"""How a configuration is chosen: measured, remembered on disk, and what may go wrong meanwhile."""

import contextlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

pytest.importorskip("triton")

import triton

from convert_to_quant.kernels.triton import _arch, _stored, _timing, _tuning

CUDA = torch.device("cuda", 0)
ARCH = _arch.Arch("sm90", "Some GPU 80GB")
ROOT = Path(__file__).parents[3]


class Option(NamedTuple):
    label: str
    time: float | BaseException | None
    handicap: float = 1.0


class FakeEvent:
    """A device event on a clock that the runs advance."""

    now = 0.0

    def __init__(self, enable_timing):
        self.at = 0.0

    def record(self):
        self.at = FakeEvent.now

    def elapsed_time(self, other):
        return other.at - self.at


def without_a_gpu():
    """PyTorch as the clock sees it, with events of FakeEvent and memory of the CPU."""
    module = SimpleNamespace(Event=FakeEvent, synchronize=lambda device: None)
    changed = {
        "get_device_module": lambda device: module,
        "empty": lambda size, dtype, device: torch.empty(size, dtype=dtype),
    }
    return SimpleNamespace(**{**vars(torch), **changed})


@pytest.fixture
def tuner(monkeypatch, tmp_path):
    """`choose` on a GPU that is not there: each run of an option takes its time, or raises its error.

    tuner.measured lists what was timed, and tuner.current the device that was current then.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CONVERT_TO_QUANT_AUTOTUNE", raising=False)
    tuner = SimpleNamespace(measured=[], current=[], capturing=False, path=_stored.cache_path(ARCH))
    inside: list[torch.device] = []

    @contextlib.contextmanager
    def current(device):
        inside.append(device)
        yield
        inside.pop()

    def run(option):
        if option.label not in tuner.measured:
            tuner.measured.append(option.label)
        tuner.current.append(inside[-1] if inside else None)
        if isinstance(option.time, BaseException):
            raise option.time
        FakeEvent.now += option.time / 1e3

    def capturing():
        tuner.current.append(inside[-1] if inside else None)
        return tuner.capturing

    monkeypatch.setattr(_tuning, "on", current)
    monkeypatch.setattr(_timing, "torch", without_a_gpu())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", capturing)
    monkeypatch.setattr(_timing, "FLUSH", 16)

    def choose(*options, key="op m16", device=CUDA):
        chosen, settled = _tuning.choose(ARCH, key, options, run, device)
        return chosen.label, settled

    tuner.choose = choose
    tuner.pick = lambda *options, **call: choose(*options, **call)[0]
    _tuning.forget()
    yield tuner
    _tuning.forget()


SLOW, FAST = Option("slow", 9.0), Option("fast", 5.0)
BROKEN = Option("broken", RuntimeError("no kernel"))


def test_the_fastest_is_chosen_and_a_second_process_does_not_measure(tuner):
    assert tuner.choose(SLOW, FAST, BROKEN) == ("fast", True)
    assert tuner.measured == ["slow", "fast", "broken"]
    stored = json.loads(tuner.path.read_text())
    assert list(stored.values()) == [{"choice": "fast", "microseconds": {"fast": 5.0, "slow": 9.0}}]
    assert next(iter(stored)).startswith("op m16 #")
    _tuning.forget()
    tuner.measured = []
    assert tuner.pick(SLOW, FAST, BROKEN) == "fast"
    assert tuner.measured == []
    assert [p.name for p in tuner.path.parent.iterdir()] == [tuner.path.name]


def test_a_key_may_be_a_format_and_its_values(tuner):
    tuner.pick(SLOW, FAST, key=("op m{} {}", 16, torch.int8))
    assert next(iter(json.loads(tuner.path.read_text()))).startswith("op m16 torch.int8 #")


def test_a_handicap_needs_a_clear_win(tuner):
    assert tuner.pick(Option("int8", 100.0), Option("float", 97.0, 1.05)) == "int8"
    assert tuner.pick(Option("int8", 100.0), Option("float", 90.0, 1.05), key="other") == "float"


def test_the_variable_is_read_at_each_call(tuner, monkeypatch):
    monkeypatch.setenv("CONVERT_TO_QUANT_AUTOTUNE", "0")
    assert tuner.choose(SLOW, FAST) == ("slow", True)
    assert not tuner.measured
    monkeypatch.setenv("CONVERT_TO_QUANT_AUTOTUNE", "1")
    assert tuner.pick(SLOW, FAST) == "fast"


def test_nothing_is_measured_or_kept_while_a_graph_is_captured(tuner):
    tuner.capturing = True
    assert tuner.choose(SLOW, FAST) == ("slow", False)
    assert not tuner.measured
    assert not tuner.path.exists()
    tuner.capturing = False
    assert tuner.choose(SLOW, FAST) == ("fast", True)


def test_the_tensors_device_is_current_for_the_capture_check_and_the_clock(tuner):
    """Else another device's stream is asked, and another device's stream is timed."""
    second = torch.device("cuda", 1)
    tuner.pick(SLOW, FAST, device=second)
    assert len(tuner.current) > 2
    assert set(tuner.current) == {second}


ERRORS = {
    "assembler": triton.runtime.errors.PTXASError("ptxas died"),
    "resources": triton.runtime.errors.OutOfResources(300000, 232448, "shared memory"),
    "assertion": AssertionError("a pass of the compiler"),
    "value": ValueError("tcgen05"),
    "type": TypeError("signature"),
    "driver": RuntimeError("invalid argument"),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_a_candidate_that_fails_is_one_candidate_less(tuner, error):
    assert tuner.choose(Option("bad", error), SLOW, FAST) == ("fast", True)
    assert "bad" not in json.loads(tuner.path.read_text()).popitem()[1]["microseconds"]


def test_a_candidate_may_fail_while_it_is_timed(tuner):
    class Later(Option):
        runs = 0

        @property
        def time(self):
            Later.runs += 1
            return 1.0 if Later.runs < 3 else RuntimeError("now")

    assert tuner.pick(Later("later", None), SLOW) == "slow"


def test_an_interrupt_is_no_failed_candidate(tuner):
    with pytest.raises(KeyboardInterrupt):
        tuner.pick(SLOW, Option("stopped", KeyboardInterrupt()))


def test_want_of_memory_is_not_remembered(tuner, monkeypatch):
    full = Option("large", torch.OutOfMemoryError("full"))
    now = 1000.0
    monkeypatch.setattr(_tuning.time, "monotonic", lambda: now)
    assert tuner.choose(full, SLOW, FAST) == ("fast", False)
    assert not tuner.path.exists()
    tuner.measured = []
    assert tuner.choose(full, SLOW, FAST) == ("fast", False)  # and does not measure at every call
    assert not tuner.measured
    now += _tuning.RETRY
    assert tuner.choose(full, SLOW, FAST) == ("fast", False)
    assert tuner.measured == ["large", "slow", "fast"]


def test_when_nothing_runs_the_first_is_taken_for_this_call_only(tuner):
    assert tuner.choose(BROKEN, Option("also broken", ValueError("no"))) == ("broken", False)
    assert not tuner.path.exists()


HOSTILE = {
    "empty": b"",
    "list": b"[1]",
    "entry of another kind": b'{"ENTRY": 3}',
    "unknown choice": b'{"ENTRY": {"choice": "gone"}}',
    "choice of another kind": b'{"ENTRY": {"choice": ["fast"]}}',
    "not text": b"\xff\xfe\x00",
    "cut off": b'{"ENTRY": {"choice": "fa',
    "deep": b"[" * 200_000,
    "long number": b'{"ENTRY": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_useless_cache_is_measured_again_and_mended(tuner, content, caplog):
    entry = _tuning._entry("op m16", (SLOW, FAST))
    tuner.path.parent.mkdir(parents=True)
    tuner.path.write_bytes(content.replace(b"ENTRY", entry.encode()))
    with caplog.at_level(logging.WARNING):
        assert tuner.pick(SLOW, FAST) == "fast"
    assert json.loads(tuner.path.read_text())[entry]["choice"] == "fast"
    assert all("\n" not in r.getMessage() and len(r.getMessage()) < 500 for r in caplog.records)


@pytest.mark.parametrize("kind", ["pipe", "folder", "large"])
def test_what_is_no_cache_file_is_ignored_in_one_line(tuner, kind, caplog, monkeypatch):
    tuner.path.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(tuner.path)
    elif kind == "folder":
        tuner.path.mkdir()
    else:
        monkeypatch.setattr(_stored, "MAX_BYTES", 8)
        tuner.path.write_text('{"op": {"choice": "slow"}}')
    with caplog.at_level(logging.WARNING):
        assert _stored.read(tuner.path) == {}
    assert len(caplog.records) == 1
    assert tuner.pick(SLOW, FAST) == "fast"


def test_sets_of_candidates_do_not_share_an_entry(tuner):
    """Aligned and unaligned calls of one shape have different tiles; alternating must not measure again."""
    aligned, unaligned = (SLOW, FAST), (Option("bytes", 20.0), Option("more bytes", 30.0))
    tuner.pick(*aligned)
    tuner.pick(*unaligned)
    tuner.measured = []
    for _ in range(3):
        assert tuner.pick(*aligned) == "fast"
        assert tuner.pick(*unaligned) == "bytes"
    assert not tuner.measured


def test_an_unwritable_cache_costs_a_warning_only(tuner, caplog):
    tuner.path.parent.parent.mkdir(parents=True, exist_ok=True)
    tuner.path.parent.write_text("a file where the folder should be")
    assert tuner.pick(SLOW, FAST) == "fast"
    assert "not kept" in caplog.text


WRITER = """
import sys
from pathlib import Path
from convert_to_quant.kernels.triton import _stored
path, writer = Path(sys.argv[1]), sys.argv[2]
for i in range(10):
    _stored.add(path, {f"{writer} {i}": {"choice": "c"}})
"""


def test_processes_that_write_at_once_lose_no_entry(tmp_path):
    pytest.importorskip("fcntl")
    path = tmp_path / "choices.json"
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, str(w)], cwd=ROOT) for w in range(3)]
    assert [w.wait() for w in writers] == [0] * 3
    assert len(json.loads(path.read_text())) == 30


@pytest.mark.parametrize(
    ("m", "bucket"), [(1, 16), (17, 64), (256, 256), (4097, 8192), (32769, 65536), (75600, 131072)]
)
def test_buckets(m, bucket):
    assert _tuning.bucket(m) == bucket


def test_measuring_takes_the_median(monkeypatch):
    monkeypatch.setattr(_timing, "torch", without_a_gpu())
    monkeypatch.setattr(_timing, "FLUSH", 16)
    steps = iter([100.0, 3.0, 1.0, 2.0, 9.0, 2.5])

    def run():
        FakeEvent.now += next(steps)

    assert _timing.microseconds("label", run, CUDA) == 2500.0
