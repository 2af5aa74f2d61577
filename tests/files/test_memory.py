"""Memory that is used again: only when nothing refers to it any more, and within its limit."""

import threading
from contextvars import copy_context

import pytest
import torch

from convert_to_quant.files.memory import _Buffers, empty, reused_buffers

MIB = 1 << 20


def large(mib: float = 4) -> torch.Tensor:
    return empty((int(mib * MIB),), torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.float64])
@pytest.mark.parametrize("shape", [(), (0, 5), (3, 7), (513, 2048)])
def test_a_tensor_is_as_asked_for_inside_and_outside(shape, dtype):
    outside = empty(shape, dtype)
    with reused_buffers(64 * MIB):
        inside = empty(shape, dtype)
    for t in (outside, inside):
        assert (t.shape, t.dtype, t.device.type) == (torch.Size(shape), dtype, "cpu")
        assert t.is_contiguous()
        assert t.fill_(1).sum() == t.numel()


def test_memory_is_used_again_once_the_last_view_of_it_is_gone():
    with reused_buffers(64 * MIB):
        first = large()
        place, view = first.data_ptr(), first.view(torch.float32)[100:200]
        view.fill_(3.0)
        del first
        second = large()
        assert second.data_ptr() != place
        second.zero_()
        assert bool((view == 3.0).all())
        del view
        assert large().data_ptr() == place


def test_what_outlives_the_block_keeps_its_values():
    with reused_buffers(64 * MIB):
        kept = large().fill_(7)
    with reused_buffers(64 * MIB):
        large().zero_()
    assert bool((kept == 7).all())


def test_a_much_larger_buffer_is_left_for_larger_tensors():
    with reused_buffers(64 * MIB):
        place = large(8).data_ptr()
        assert large(4).data_ptr() != place
        assert large(7).data_ptr() == place


def test_above_the_limit_the_longest_unused_go():
    buffers = _Buffers(10 * MIB)
    for size in (4, 6):
        buffers.take(size * MIB)
    assert buffers.held == 10 * MIB
    kept = buffers.take(7 * MIB)  # no quarter larger than 6, and 17 with both
    assert (buffers.held, len(kept)) == (7 * MIB, 7 * MIB)
    buffers.take(2 * MIB)
    assert buffers.held == 9 * MIB


def test_more_than_the_limit_may_be_in_use():
    with reused_buffers(MIB):
        held = [large(2).fill_(n) for n in range(5)]
        assert [int(t[-1]) for t in held] == [0, 1, 2, 3, 4]


def test_a_thread_in_a_copy_of_the_context_shares_it_and_gives_back():
    with reused_buffers(64 * MIB):
        first = large()
        place, box, seen = first.data_ptr(), [first], []
        del first

        def elsewhere():
            box.clear()
            seen.append(large().data_ptr())

        thread = threading.Thread(target=copy_context().run, args=(elsewhere,))
        thread.start()
        thread.join()
        assert seen == [place]
        assert large().data_ptr() == place


def test_many_threads_never_share_memory_in_use():
    wrong = []

    def churn(number: int):
        for size in (2, 3, 2, 5, 3, 2) * 5:
            mine = large(size).fill_(number)
            other = large(2).fill_(number + 100)
            if bool((mine != number).any()) or bool((other != number + 100).any()):
                wrong.append(number)

    with reused_buffers(12 * MIB):
        threads = [threading.Thread(target=copy_context().run, args=(churn, n)) for n in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert wrong == []


def test_inference_mode_and_a_default_device_leave_no_mark_on_it():
    with reused_buffers(64 * MIB):
        with torch.inference_mode():
            place = large().fill_(1).data_ptr()
        with torch.device("meta"):
            again = large()
        assert (again.data_ptr(), again.device.type) == (place, "cpu")
        assert not again.is_inference()
        again.fill_(2)
