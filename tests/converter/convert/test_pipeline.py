"""The pipeline: order, memory budget, and failures in each of its parts."""

import threading

import pytest

from convert_to_quant.converter.convert.pipeline import run


def collect(
    items, *, limit=10, cost=lambda i: 1, read=lambda i: i, work=lambda i, v: v, on_write=lambda i: None
):
    written = []

    def write(item, result):
        on_write(item)
        written.append((item, result))

    run(items, cost=cost, read=read, work=work, write=write, limit=limit)
    return written


def test_items_pass_in_order():
    assert collect(range(50), read=lambda i: i * 2, work=lambda i, v: v + 1) == [
        (i, 2 * i + 1) for i in range(50)
    ]


def test_the_budget_bounds_what_is_in_flight():
    """Nothing is written before two items are in flight; a third never is."""
    held, peak, lock, full = [0], [0], threading.Lock(), threading.Event()

    def read(i):
        with lock:
            held[0] += 4
            peak[0] = max(peak[0], held[0])
        if held[0] == 8:
            full.set()
        return i

    def on_write(i):
        full.wait(60)
        full.set()  # no second wait in a pipeline that is wrong
        with lock:
            held[0] -= 4

    collect(range(30), limit=8, cost=lambda i: 4, read=read, on_write=on_write)
    assert peak[0] == 8


def test_one_item_beyond_the_budget_passes_alone():
    assert collect([1, 2, 3], limit=1, cost=lambda i: 100) == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize("part", ["read", "work", "write"])
def test_a_failure_anywhere_is_raised_and_stops_all(part):
    def fail(item, *_):
        if item == 5:
            raise RuntimeError(f"broken in {part}")
        return item

    parts = {"read": {"read": fail}, "work": {"work": fail}, "write": {"on_write": fail}}[part]
    before = threading.active_count()
    with pytest.raises(RuntimeError, match=f"broken in {part}"):
        collect(range(1000), **parts)
    assert threading.active_count() == before
