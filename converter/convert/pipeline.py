"""A reader, a worker and a writer that overlap, within a fixed amount of memory.

Items pass in order. The first exception in any of the three, or Ctrl-C, stops all of them and is
raised where the pipeline was started.
"""

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any


class Stopped(Exception):
    """Another part of the pipeline failed: leave quietly."""


class _Budget:
    """Bytes in flight. A single item larger than the limit passes when it is alone."""

    def __init__(self, limit: int, stop: threading.Event):
        self._limit, self._stop = limit, stop
        self._used = 0
        self._changed = threading.Condition()

    def acquire(self, count: int) -> None:
        with self._changed:
            while self._used and self._used + count > self._limit:
                self._changed.wait(0.2)
                if self._stop.is_set():
                    raise Stopped
            self._used += count

    def release(self, count: int) -> None:
        with self._changed:
            self._used -= count
            self._changed.notify_all()


class _Channel:
    """A bounded queue that a stop event breaks. None marks the end."""

    def __init__(self, size: int, stop: threading.Event):
        self._items: deque[Any] = deque()
        self._size, self._stop = size, stop
        self._changed = threading.Condition()

    def put(self, item: Any) -> None:
        with self._changed:
            while len(self._items) >= self._size:
                self._wait()
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> Any:
        with self._changed:
            while not self._items:
                self._wait()
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def _wait(self) -> None:
        self._changed.wait(0.2)
        if self._stop.is_set():
            raise Stopped


def run(
    items: Iterable[Any],
    *,
    cost: Callable[[Any], int],
    read: Callable[[Any], Any],
    work: Callable[[Any, Any], Any],
    write: Callable[[Any, Any], None],
    limit: int,
    ahead: int = 2,
    stopped: Callable[[], None] = lambda: None,
) -> None:
    """Do ``write(item, work(item, read(item)))`` for each item, the three overlapping.

    cost: bytes an item occupies from its reading to its writing; `limit` bounds their sum.
    ahead: results of `work` that may wait to be written.
    `work` runs in the calling thread, the others in copies of its context. stopped: called when one of them
    has failed, so that what waits long can be ended: it raises `Stopped`.
    """
    stop = threading.Event()
    budget = _Budget(limit, stop)
    to_work, to_write = _Channel(2, stop), _Channel(ahead, stop)
    failures: list[BaseException] = []

    def guarded(body: Callable[[], None]) -> None:
        try:
            body()
        except Stopped:
            pass
        except BaseException as e:
            failures.append(e)
            stop.set()
            stopped()

    def reader() -> None:
        for item in items:
            budget.acquire(cost(item))
            to_work.put((item, read(item)))
        to_work.put(None)

    def worker() -> None:
        while (pair := to_work.get()) is not None:
            item, value = pair
            del pair
            result = work(item, value)
            del value
            to_write.put((item, result))
            del result
        to_write.put(None)

    def writer() -> None:
        while (pair := to_write.get()) is not None:
            item, result = pair
            del pair
            write(item, result)
            del result
            budget.release(cost(item))

    threads = []
    for body in (reader, writer):
        context = contextvars.copy_context()
        threads.append(threading.Thread(target=context.run, args=(guarded, body), daemon=True))
    for thread in threads:
        thread.start()
    try:
        guarded(worker)
        for thread in threads:
            thread.join()
    except BaseException as e:  # Ctrl-C while joining
        failures.insert(0, e)
        stop.set()
        stopped()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
