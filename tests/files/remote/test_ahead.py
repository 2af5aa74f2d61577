"""Reading ahead: the same bytes, within bounds."""

import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert_to_quant.files.remote import ahead
from convert_to_quant.files.remote.address import RemoteFile
from convert_to_quant.files.remote.ahead import RemoteReader
from convert_to_quant.files.remote.source import RangeSource
from convert_to_quant.formats.errors import CheckpointError

DATA = random.Random(0).randbytes(3000)


class Memory(RangeSource):
    """DATA, with a note of every request."""

    def __init__(self):
        super().__init__(RemoteFile("memory://x"), len(DATA), "1")
        self.asked: list[tuple[int, int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def fetch(self, offset: int, buffer: memoryview) -> int:
        self.gate.wait(10)
        self.asked.append((offset, len(buffer)))
        buffer[:] = DATA[offset : offset + len(buffer)]
        return len(buffer)

    def disconnect(self) -> None:
        self.gate.set()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in {"BLOCK": 100, "PAGE": 16, "ASIDE": 30, "PAGES": 4}.items():
        monkeypatch.setattr(ahead, name, value)


@given(st.lists(st.tuples(st.integers(0, 2999), st.integers(0, 700)), max_size=12))
def test_any_order_of_reads_gives_the_bytes(reads):
    reader, at = RemoteReader(Memory()), 0
    for start, count in reads:
        for first in (start, at):  # here and there, and on from where it was
            stop = min(first + count, len(DATA))
            assert reader.read(first, stop - first) == DATA[first:stop]
            at = stop
    reader.close()


def test_one_that_reads_on_finds_the_next_blocks_on_their_way():
    source = Memory()
    reader = RemoteReader(source)
    reader.read(0, 50)
    assert source.asked == [(0, 50)], "who reads once gets what was asked for"
    reader.read(50, 20)
    reader.close()
    assert set(source.asked[1:]) <= {(50 + 100 * i, 100) for i in range(ahead.AHEAD)}, "and no more than that"
    source.asked.clear()
    for start in range(0, 3000, 30):
        assert reader.read(start, 30) == DATA[start : start + 30]
    assert sum(count for _, count in source.asked) == len(DATA), "nothing is asked for twice"


def test_small_reads_get_pages():
    source = Memory()
    reader = RemoteReader(source)
    for start in (1000, 1005, 1009, 2000, 1001):
        assert reader.read(start, 4) == DATA[start : start + 4]
    assert source.asked == [(992, 16), (1008, 16), (2000, 16)]
    reader.expect([(1000, 4), (500, 10), (490, 10), (2999, 1)])
    assert sorted(source.asked[3:]) == [(480, 16), (496, 16), (2992, 8)]
    asked = len(source.asked)
    assert reader.read(500, 10) == DATA[500:510]
    assert len(source.asked) == asked


def test_small_tensors_that_lie_one_after_the_other_are_read_ahead():
    source = Memory()
    reader = RemoteReader(source)
    for start in range(100, 2100, 20):
        assert reader.read(start, 20) == DATA[start : start + 20]
    assert len(source.asked) < 30


def test_a_look_aside_leaves_what_is_on_its_way():
    source = Memory()
    reader = RemoteReader(source)
    for start in range(0, 1000, 50):
        assert reader.read(start, 50) == DATA[start : start + 50]
        assert reader.read(2900 - start, 20) == DATA[2900 - start : 2920 - start]
    assert sum(1 for _, count in source.asked if count == 100) <= 10 + ahead.AHEAD


def test_reading_behind_the_end_is_refused():
    reader = RemoteReader(Memory())
    for start, count in ((2990, 500), (2999, 2), (5000, 1), (3000, 600)):
        with pytest.raises(CheckpointError, match="ends at byte 3000"):
            reader.read(start, count)
    reader.read(2000, 1000)
    with pytest.raises(CheckpointError, match="ends at byte 3000"):
        reader.read(3000, 600)
