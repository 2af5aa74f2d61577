"""Kernels whose threads hand on numbers through memory: a barrier stands between write and read."""

import pytest
import torch
from triton.runtime.interpreter import InterpreterBuilder

from convert_to_quant.kernels.triton.descent import descend_
from convert_to_quant.kernels.triton.ldlq import ldlq_


class Touched:
    """The addresses that a program read and wrote since its last barrier."""

    def __init__(self):
        self.read, self.written, self.barriers = set(), set(), 0

    def forget(self):
        self.read, self.written = set(), set()


@pytest.fixture
def touched(monkeypatch):
    """Fails a read of what was written since the last barrier, and a write of what was read or written."""
    seen = Touched()
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    begin, barrier = InterpreterBuilder.set_grid_idx, InterpreterBuilder.create_barrier

    def loading(self, ptrs, mask, *rest):
        at = set(ptrs.data[mask.data].ravel().tolist())
        assert not at & seen.written, "read before a barrier made it certain to be written"
        seen.read |= at
        return load(self, ptrs, mask, *rest)

    def storing(self, ptrs, value, mask, *rest):
        at = set(ptrs.data[mask.data].ravel().tolist())
        assert not at & (seen.read | seen.written), "written while another thread may not have read it"
        seen.written |= at
        return store(self, ptrs, value, mask, *rest)

    def beginning(self, *place):
        seen.forget()
        return begin(self, *place)

    def waiting(self):
        seen.forget()
        seen.barriers += 1
        return barrier(self)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", loading)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", storing)
    monkeypatch.setattr(InterpreterBuilder, "set_grid_idx", beginning)
    monkeypatch.setattr(InterpreterBuilder, "create_barrier", waiting)
    return seen


@pytest.mark.parametrize("op", [ldlq_, descend_], ids=["ldlq", "descent"])
def test_what_passes_through_memory_waits_for_a_barrier(op, touched):
    """Three panels, the last one ragged."""
    q = torch.zeros(33, 40, dtype=torch.int8)
    op(q, torch.randn(33, 40), torch.eye(40) + 0.1, torch.ones(()))
    assert touched.barriers >= 2 * 3 * 2, "of two programs, each with three panels"
    assert q.any()
