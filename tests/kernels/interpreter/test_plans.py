"""When a call is replayed, when it is not, and what a plan may hold. The bits are `test_kernels`' matter."""

import gc
import weakref

import pytest
import torch
from test_kernels import PLAIN
from triton_cases import same

from convert_to_quant import kernels
from convert_to_quant.kernels.triton import _arch, _replay, _trace, _tuning

LINEAR = PLAIN["int8_linear"]


@pytest.fixture(autouse=True)
def no_plans():
    _tuning.forget()
    yield
    _tuning.forget()


def operands(m=5, n=24, k=64):
    x, bias = torch.randn(m, k), torch.randn(n)
    return x, torch.randint(-127, 128, (n, k), dtype=torch.int8), torch.rand(n, 1), bias


def eager(*args):
    with kernels.force_eager():
        return kernels.int8_linear(*args)


def test_one_plan_a_kind_of_call():
    for m in (5, 5, 7):
        args = operands(m)
        same(LINEAR(*args), eager(*args))
    LINEAR(*operands(), 16)
    assert len(_replay._plans) == 3
    assert None not in _replay._plans.values()


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
    assert None not in _replay._plans.values()


def test_the_same_tensor_twice_is_not_replayed():
    x, q, _, _ = operands()
    one = torch.tensor(0.5)
    for other in (one, torch.tensor(0.25)):
        same(LINEAR(x, q, one, None, 0, other), eager(x, q, one, None, 0, other))
    assert list(_replay._plans.values()) == [None]


def test_what_needs_a_copy_is_not_replayed():
    x, q, scale, bias = operands()
    strided = torch.stack((bias, bias), 1)[:, 0]
    for _ in range(2):
        same(LINEAR(x, q, scale, strided), eager(x, q, scale, bias))
        strided += 1
        bias += 1
    assert list(_replay._plans.values()) == [None]


def test_strided_rows_are_replayed_in_place():
    _, q, scale, bias = operands(5, 24, 128)
    for _ in range(2):
        rows = torch.randn(5, 256)[:, 64:192]
        same(LINEAR(rows, q, scale, bias), eager(rows.clone(), q, scale, bias))
    assert None not in _replay._plans.values()


def test_the_variable_and_forget_start_anew(monkeypatch):
    args = operands()
    LINEAR(*args)
    monkeypatch.setenv("CONVERT_TO_QUANT_AUTOTUNE", "0")
    LINEAR(*args)
    assert len(_replay._plans) == 2
    _tuning.forget()
    assert not _replay._plans


def test_plans_are_bounded(monkeypatch):
    monkeypatch.setattr(_replay, "LIMIT", 2)
    for m in (1, 2, 3):
        LINEAR(*operands(m))
    assert len(_replay._plans) == 1


def test_keywords_are_the_same_call():
    x, q, scale, bias = operands()
    same(LINEAR(x, q, weight_scale=scale, bias=bias), LINEAR(x, q, scale, bias=bias))
    assert len(_replay._plans) == 1


def test_errors_are_raised_each_time():
    x, q, scale, _ = operands()
    for _ in range(2):
        with pytest.raises(ValueError, match="bias"):
            LINEAR(x, q, scale, torch.zeros(3))
    assert not _replay._plans


def test_measuring_is_not_part_of_a_plan(monkeypatch):
    """The tuner runs every candidate; only the one chosen is replayed. A choice made blind is not kept."""
    done = []
    trace = _trace.Trace()
    monkeypatch.setattr(_tuning, "_measure", lambda c, run, device: run(c) or c.time)

    class Option(tuple):
        label, handicap, time = property(lambda s: s[0]), 1.0, property(lambda s: s[1])

    def run(option):
        _trace.library(done.append, option.label)

    options, device = (Option(("slow", 2.0)), Option(("fast", 1.0))), torch.device("cuda", 0)
    arch = _arch.Arch("sm90", "a GPU of test_plans")
    monkeypatch.setattr(_tuning, "_capturing", lambda d: False)
    monkeypatch.setattr(_tuning, "_save", lambda arch, table: None)
    with _trace.tracing(trace):
        run(_tuning.choose(arch, "key", options, run, device))
    assert done == ["slow", "fast", "fast"]
    assert [s.args for s in trace.steps] == [("fast",)]
    assert trace.kept
    monkeypatch.setattr(_tuning, "_capturing", lambda d: True)
    with _trace.tracing(trace):
        _tuning.choose(arch, "another key", options, run, device)
    assert not trace.kept
