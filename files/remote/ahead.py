"""Reading ahead of a reader, within a fixed amount of memory.

One that reads on where it stopped finds the next blocks on their way, over several connections at once: what
one connection carries is less than most networks do. Small reads here and there get a page, or what they ask
for, and no more: a look at headers and configurations moves little.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from .source import RangeSource

BLOCK = 8 << 20
AHEAD = 4
"""Blocks on their way for one reader: 32 MiB."""

PAGE = 4 << 10
PAGES = 2048
"""Pages that are kept: 8 MiB, for the configurations of 2048 layers wherever they lie."""

ASIDE = 256 << 10
"""The largest read that leaves what is on its way as it is: of a bias, say, between two weights."""


class RemoteReader:
    """A source, read by any number of threads; each has its own place in it."""

    def __init__(self, source: RangeSource):
        self.source = source
        self._local = threading.local()
        self._mutex = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._pages: OrderedDict[int, bytes] = OrderedDict()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from `offset` on; errors as `RangeSource.read_into`."""
        if len(buffer) <= PAGE and all(start in self._pages for start in _pages_of(offset, len(buffer))):
            self._from_pages(offset, buffer)
            return
        ahead = self._ahead()
        if len(buffer) <= ASIDE and not ahead.reads_on(offset):
            ahead.aside = offset + len(buffer)
            if len(buffer) <= PAGE:
                self._from_pages(offset, buffer)
            else:
                self.source.read_into(offset, buffer)
            return
        while len(buffer):
            got = ahead.read(offset, buffer)
            buffer, offset = buffer[got:], offset + got

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes from `offset` on."""
        data = bytearray(count)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def expect(self, places: Iterable[tuple[int, int]]) -> None:
        """Fetch the pages of small reads (offset, count) that will come, several at once."""
        starts = {start for offset, count in places for start in _pages_of(offset, min(count, PAGE))}
        wanted = sorted(start for start in starts if start not in self._pages)[:PAGES]
        self._ahead()
        if self._pool is not None:
            list(self._pool.map(self._page, wanted))

    def interrupt(self) -> None:
        """Stop every read that waits or will wait, until `close`."""
        self.source.interrupt()

    def close(self) -> None:
        """Stop every read that is under way, and forget what was read ahead; reading again begins anew."""
        with self._mutex:
            pool, self._pool, self._local = self._pool, None, threading.local()
        self.source.close()
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def _ahead(self) -> _Ahead:
        with self._mutex:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="read-ahead")
            if not hasattr(self._local, "ahead"):
                self._local.ahead = _Ahead(self.source, self._pool)
            return self._local.ahead

    def _from_pages(self, offset: int, buffer: memoryview) -> None:
        while len(buffer):
            start = offset // PAGE * PAGE
            page = self._page(start)
            piece = page[offset - start : offset - start + len(buffer)]
            if not piece:
                self.source.read_into(offset, buffer)  # tells what is wrong
                return
            buffer[: len(piece)] = piece
            buffer, offset = buffer[len(piece) :], offset + len(piece)

    def _page(self, start: int) -> bytes:
        with self._mutex:
            if start in self._pages:
                return self._pages[start]
        page = self.source.read(start, max(0, min(PAGE, self.source.size - start)))
        with self._mutex:
            self._pages[start] = page
            while len(self._pages) > PAGES:
                self._pages.popitem(last=False)
        return page


def _pages_of(offset: int, count: int) -> range:
    return range(offset // PAGE * PAGE, offset + count, PAGE)


class _Ahead:
    """The blocks on their way for one thread: consecutive, from where it is on.

    aside: where its last read ended that was none of them.
    """

    def __init__(self, source: RangeSource, pool: ThreadPoolExecutor):
        self._source, self._pool = source, pool
        self._blocks: deque[tuple[int, int, Future[bytes]]] = deque()
        self._next = self.aside = -1

    def reads_on(self, offset: int) -> bool:
        """Return whether a read goes on where one stopped, or into what is on its way."""
        if offset == self.aside and not self.covers(offset):
            self._drop()
            self._next = offset
        return offset == self._next or self.covers(offset)

    def covers(self, offset: int) -> bool:
        return bool(self._blocks) and self._blocks[0][0] <= offset < self._end()

    def _end(self) -> int:
        return self._blocks[-1][0] + self._blocks[-1][1]

    def read(self, offset: int, buffer: memoryview) -> int:
        """Fill the begin of a buffer; return how much."""
        if not self.covers(offset):
            self._drop()
            if offset != self._next:
                part = buffer[:BLOCK]
                self._source.read_into(offset, part)
                self._next = offset + len(part)
                return len(part)
            self._start(offset)
        while self._blocks[0][0] + self._blocks[0][1] <= offset:
            self._blocks.popleft()
        self._fill()
        start, count, block = self._blocks[0]
        try:
            data = block.result()
        except BaseException:
            self._drop()
            raise
        part = buffer[: start + count - offset]
        part[:] = data[offset - start : offset - start + len(part)]
        self._next = offset + len(part)
        return len(part)

    def _start(self, at: int) -> None:
        count = min(BLOCK, self._source.size - at)
        if count <= 0:
            self._source.read(at, 1)  # tells what is wrong
        self._blocks.append((at, count, self._pool.submit(self._source.read, at, count)))

    def _fill(self) -> None:
        while len(self._blocks) < AHEAD and self._end() < self._source.size:
            self._start(self._end())

    def _drop(self) -> None:
        for _, _, block in self._blocks:
            block.cancel()
        self._blocks.clear()
