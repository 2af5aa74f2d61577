"""What a plan may hold, when a call is replayed and when it is not. The bits are `test_kernels`' matter."""

import contextlib
import gc
import logging
import weakref

import pytest
import torch
from test_kernels import PLAIN
from triton_cases import same

from convert_to_quant import kernels
from convert_to_quant.kernels.triton import _arch, _kept, _planned, _stored, _tuning, rotation
from convert_to_quant.kernels.triton._operands import empty
from convert_to_quant.kernels.triton._plan import Call, Choice, Plan
from convert_to_quant.kernels.triton._planned import planned

LINEAR = PLAIN["int8_linear"]


@pytest.fixture(autouse=True)
def no_plans():
    _tuning.forget()
    _planned._said.clear()
    yield
    _tuning.forget()


def operands(m=5, n=24, k=64):
    x, bias = torch.randn(m, k), torch.randn(n)
    return x, torch.randint(-127, 128, (n, k), dtype=torch.int8), torch.rand(n, 1), bias


def eager(*args):
    with kernels.force_eager():
        return kernels.int8_linear(*args)


def replays() -> list:
    """The replay of each kept plan; None for a plan that is run by name."""
    return [again.replay for again in _kept.PLANS.values()]


OPERATIONS = {
    "in place": lambda x, out: out.mul_(2),
    "function": lambda x, out: torch.mul(x, 2),
    "out": lambda x, out: torch.neg(x, out=out),
    "operator": lambda x, out: x * 2,
    "comparison": lambda x, out: x > 0,
    "copy": lambda x, out: out.copy_(x),
    "item": lambda x, out: x.item(),
    "index": lambda x, out: x[0],
    "assignment": lambda x, out: out.__setitem__(0, 1),
    "storage": lambda x, out: x.data_ptr(),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_a_launcher_cannot_work_outside_its_plan(operation):
    """Done at the first call alone, such work would be missing from every replay."""

    @planned
    def launcher(x):
        out = empty(x.shape, x.dtype, x.device)
        operation(x, out)
        return Plan([rotation.launch_rotate(x, out, 16)], out)

    with pytest.raises((AttributeError, TypeError)):
        launcher(torch.randn(4, 16))
    assert not _kept.PLANS


@pytest.mark.parametrize("operation", ["in place", "function"])
def test_the_refusal_says_where_work_belongs(operation):
    launcher = planned(lambda x: OPERATIONS[operation](x, x))
    with pytest.raises((AttributeError, TypeError), match=r"'mul_?'.*the plan that the launcher returns"):
        launcher(torch.randn(4))


def test_the_first_call_runs_the_steps_of_the_plan_and_no_others():
    done = []

    @planned
    def launcher(x):
        out = empty(x.shape, x.dtype, x.device)
        Call(done.append, "dropped")
        steps = [Call(done.append, "kept"), Call(torch.Tensor.copy_, out, x), Call(torch.Tensor.mul_, out, 2)]
        return Plan(steps, out)

    for x in torch.randn(3, 4):
        same(launcher(x), 2 * x)
    assert done == ["kept"] * 3


def test_a_result_that_no_step_writes_is_refused():
    launcher = planned(lambda x: Plan([], empty(x.shape, x.dtype, x.device)))
    for _ in range(2):
        with pytest.raises(ValueError, match="no step of the plan writes its result"):
            launcher(torch.randn(4))
    assert launcher(torch.randn(0, 4)).shape == (0, 4)


def test_an_argument_or_a_copy_is_no_result():
    for launcher in (planned(lambda x: Plan([], x)), planned(lambda x: Plan([], x.copy()))):
        with pytest.raises(ValueError, match="memory of its own"):
            launcher(torch.randn(4))


def test_what_a_step_writes_cannot_be_copied_before_it():
    launcher = planned(lambda x: Plan([], empty(x.shape, torch.int8, x.device).float()))
    with pytest.raises(TypeError, match="copy it by a Call"):
        launcher(torch.randn(4))


def test_one_plan_per_kind_of_call():
    for m in (5, 5, 7):
        args = operands(m)
        same(LINEAR(*args), eager(*args))
    LINEAR(*operands(), 16)
    assert len(_kept.PLANS) == 3
    assert None not in replays()


def test_the_variable_turns_replays_off_at_any_call(monkeypatch):
    args = operands()
    for setting, kept in (("0", 0), ("1", 1), ("0", 1)):
        monkeypatch.setenv("CONVERT_TO_QUANT_REPLAY", setting)
        same(LINEAR(*args), eager(*args))
        assert len(_kept.PLANS) == kept
    monkeypatch.setattr(_planned.Again, "__call__", lambda self, args: pytest.fail("replayed"))
    same(LINEAR(*args), eager(*args))


@pytest.mark.parametrize("when", ["prepared", "called"])
def test_a_failed_replay_is_said_once_and_the_plan_launched_by_name(when, monkeypatch, caplog):
    tried = []

    class Broken:
        def __init__(self, plan, done):
            if when == "prepared":
                self(None)

        def __call__(self, args):
            tried.append(when)
            raise AttributeError("no packed_metadata")

    monkeypatch.setattr(_planned, "Replay", Broken)
    kinds = operands(5), operands(7)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            for args in kinds:
                same(LINEAR(*args), eager(*args))
    assert len(tried) == len(kinds)
    assert replays() == [None, None]
    assert [r.getMessage() for r in caplog.records] == [
        "int8_linear is launched anew at each call, not replayed: AttributeError: no packed_metadata"
    ]


def test_an_error_of_the_launch_itself_is_raised_and_replays_go_on(monkeypatch, caplog):
    fails = []

    def work(out, x):
        if fails:
            raise RuntimeError("the device is gone")
        out.copy_(x)

    @planned
    def launcher(x):
        out = empty(x.shape, x.dtype, x.device)
        return Plan([Call(work, out, x)], out)

    x = torch.randn(4)
    launcher(x)
    fails.append(True)
    with pytest.raises(RuntimeError, match="the device is gone"):
        launcher(x)
    fails.clear()
    same(launcher(x), x)
    assert None not in replays()
    assert not caplog.records


def test_want_of_memory_is_not_taken_for_a_failed_replay():
    fails, calls = [], []

    def work(out, x):
        calls.append(x)
        if fails:
            raise torch.OutOfMemoryError("full")
        out.copy_(x)

    @planned
    def launcher(x):
        out = empty(x.shape, x.dtype, x.device)
        return Plan([Call(work, out, x)], out)

    launcher(torch.randn(4))
    fails.append(True)
    with pytest.raises(torch.OutOfMemoryError):
        launcher(torch.randn(4))
    assert len(calls) == 2
    assert None not in replays()


def test_a_plan_keeps_no_tensor_alive():
    args = operands()
    LINEAR(*args)
    LINEAR(*args)
    gone = [weakref.ref(a) for a in args]
    del args
    gc.collect()
    assert [r() for r in gone] == [None] * 4


def test_results_of_a_replay_are_new_memory():
    args = operands()
    LINEAR(*args)
    first, second = LINEAR(*args), LINEAR(*args)
    assert first.data_ptr() != second.data_ptr()


def test_arguments_that_share_a_buffer_are_told_apart():
    """As a loader that reads a checkpoint into one allocation makes them; and at other places next time."""
    for padding in (0, 64, 0):
        x, q, scale, bias = operands()
        buffer = torch.empty(padding + q.numel() + scale.numel() * 4 + bias.numel() * 4, dtype=torch.uint8)
        views, start = [], padding
        for t in (q, scale, bias):
            view = buffer[start : start + t.numel() * t.itemsize].view(t.dtype).view(t.shape)
            views.append(view.copy_(t))
            start += t.numel() * t.itemsize
        same(LINEAR(x, *views), eager(x, q, scale, bias))
    assert None not in replays()


def test_the_same_tensor_twice_is_replayed():
    x, q, _, _ = operands()
    one = torch.tensor(0.5)
    for other in (one, torch.tensor(0.25), one):
        same(LINEAR(x, q, one, None, 0, other), eager(x, q, one, None, 0, other))
    assert len(_kept.PLANS) == 1


def test_what_needs_a_copy_is_copied_at_each_call():
    """A strided bias, transposed activations, scales of another type: the copies are part of the plan."""
    _, q, scale, _ = operands(5, 24, 64)
    for _ in range(3):
        x = torch.randn(64, 5).t()
        strided = torch.randn(24, 2)[:, 0]
        same(LINEAR(x, q, scale.double(), strided), eager(x, q, scale, strided))
    assert len(_kept.PLANS) == 1
    assert None not in replays()


def test_a_copy_of_a_copy_is_made_in_order():
    def add(a, b, out):
        torch.add(a, b, out=out)

    @planned
    def launcher(x):
        turned = x.copy()
        whole, out = turned.copy(torch.float64), empty(x.shape, torch.float64, x.device)
        return Plan([Call(add, turned, whole, out)], out)

    for _ in range(3):
        x = torch.randn(3, 4).t()
        same(launcher(x), (x.double() + x.double()).contiguous())


@pytest.mark.parametrize("op", ["int8_linear", "quantize_rowwise", "int8_mm", "ldlq_"])
def test_scales_with_gaps_between_them(op):
    """One column of a wider matrix, as a file with several scales per row may give it."""
    x, q, _, _ = operands(24, 24, 64)
    scale = (torch.rand(24, 3) + 0.1)[:, 1:2]
    calls = {
        "int8_linear": lambda f, s: f(x, q, s),
        "quantize_rowwise": lambda f, s: f(x, 0, s)[0],
        "int8_mm": lambda f, s: f(q, q, s, s, None, torch.float32),
        "ldlq_": lambda f, s: f(torch.empty_like(q), x, torch.eye(64), s),
    }
    for _ in range(2):
        same(calls[op](PLAIN[op], scale), calls[op](PLAIN[op], scale.contiguous()))
    assert len(_kept.PLANS) == 2


def test_strided_rows_are_replayed_in_place():
    _, q, scale, bias = operands(5, 24, 128)
    for _ in range(2):
        rows = torch.randn(5, 256)[:, 64:192]
        same(LINEAR(rows, q, scale, bias), eager(rows.clone(), q, scale, bias))
    assert None not in replays()


def test_the_variable_and_forget_start_anew(monkeypatch):
    args = operands()
    LINEAR(*args)
    monkeypatch.setenv("CONVERT_TO_QUANT_AUTOTUNE", "0")
    LINEAR(*args)
    assert len(_kept.PLANS) == 2
    _tuning.forget()
    assert not _kept.PLANS


def test_plans_are_bounded(monkeypatch):
    monkeypatch.setattr(_kept, "LIMIT", 2)
    for m in (1, 2, 3):
        LINEAR(*operands(m))
    assert len(_kept.PLANS) == 1


def test_keywords_are_the_same_call():
    x, q, scale, bias = operands()
    same(LINEAR(x, q, weight_scale=scale, bias=bias), LINEAR(x, q, scale, bias=bias))
    assert len(_kept.PLANS) == 1


def test_errors_are_raised_each_time():
    x, q, scale, _ = operands()
    for _ in range(2):
        with pytest.raises(ValueError, match="bias"):
            LINEAR(x, q, scale, torch.zeros(3))
    assert not _kept.PLANS


def test_measuring_is_not_part_of_a_plan(monkeypatch):
    """The tuner runs every candidate; only the one chosen is replayed. A choice made blind is not kept."""
    done = []
    times = {"slow": 2.0, "fast": 1.0}
    monkeypatch.setattr(_tuning, "microseconds", lambda label, run, device: run() or times[label])
    monkeypatch.setattr(_tuning, "on", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(_tuning, "_capturing", lambda d: capturing)
    monkeypatch.setattr(_stored, "add", lambda path, entries: entries)
    capturing = False

    class Option(tuple):
        label, handicap = property(lambda s: s[0]), 1.0

    options, device = (Option(("slow",)), Option(("fast",))), torch.device("cuda", 0)
    arch = _arch.Arch("sm90", "a GPU of test_plans")

    @planned
    def launcher(x, key):
        out = empty(x.shape, x.dtype, x.device)

        def steps(option):
            part = empty(x.shape, x.dtype, x.device)
            return [Call(done.append, option.label), Call(_twice, part, x), Call(_twice, out, part)]

        before = Call(done.append, "before")
        return Plan([before, Choice(arch, key, options, steps, device)], out)

    for x in torch.randn(3, 4):
        same(launcher(x, "key"), 4 * x)
    assert done == ["before", "slow", "fast", "fast", "before", "fast", "before", "fast"]
    assert len(_kept.PLANS) == 1
    capturing = True
    same(launcher(x, "another key"), 4 * x)
    assert done[-2:] == ["before", "slow"]
    assert len(_kept.PLANS) == 1


def _twice(out, x):
    torch.mul(x, 2, out=out)
