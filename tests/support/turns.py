"""Threads of which one runs at a time: whose turn comes next is chosen, so that every run can be repeated."""

import random
import threading
from collections.abc import Callable, Hashable, Sequence

Name = Hashable


class Abandoned(BaseException):
    """Ends the threads that are left when one has failed."""


class Task:
    """A thread that waits for its turn, and for what it waits for besides."""

    def __init__(self, name: Name, work: Callable[[], None]):
        self.name, self.work = name, work
        self.done, self.turn = False, threading.Semaphore(0)
        self.until: Callable[[], bool] = lambda: True


class Turns:
    """Runs tasks, and events that happen by themselves, one after the other.

    choose: which of the names that could go on does. A task goes on until it calls `pause`.
    """

    def __init__(self, choose: Callable[[Sequence[Name]], int]):
        self._choose, self._tasks = choose, list[Task]()
        self._events = list[tuple[Name, Callable[[], None]]]()
        self._error: BaseException | None = None
        self._finished = threading.Semaphore(0)
        self._current: Task | None = None

    def task(self, name: Name, work: Callable[[], None]) -> Task:
        """Add a task."""
        self._tasks.append(Task(name, work))
        return self._tasks[-1]

    def later(self, name: Name, event: Callable[[], None]) -> None:
        """Let an event happen at any time from now on."""
        self._events.append((name, event))

    def pause(self, until: Callable[[], bool] = lambda: True) -> None:
        """Let others go on, in any case until `until` holds. Called by the task whose turn it is."""
        task = self._current
        assert task is not None
        task.until = until
        if not self._pass_on():
            task.turn.acquire()
        if self._error:
            raise Abandoned

    def run(self) -> None:
        """Run all tasks and events to their end; AssertionError for a deadlock, or what a task has raised."""
        threads = [threading.Thread(target=self._work, args=(t,), daemon=True) for t in self._tasks]
        for thread in threads:
            thread.start()
        self._pass_on()
        self._finished.acquire()
        for thread in threads:
            thread.join()
        while self._events and not self._error:
            self._happen(0)
        if self._error:
            raise self._error

    def _work(self, task: Task) -> None:
        task.turn.acquire()
        try:
            if not self._error:
                task.work()
        except Abandoned:
            pass
        except BaseException as error:
            self._error = self._error or error
        task.done = True
        self._pass_on()

    def _pass_on(self) -> bool:
        """Choose until it is a task's turn, and give it to that task; return whether it has it already."""
        while not self._error:
            if all(t.done for t in self._tasks):
                self._finished.release()
                return False
            tasks = [t for t in self._tasks if not t.done and t.until()]
            names = [t.name for t in tasks] + [name for name, _ in self._events]
            if not names:
                waiting = ", ".join(str(t.name) for t in self._tasks if not t.done)
                self._error = AssertionError(f"deadlock: {waiting} wait without end")
                break
            chosen = self._choose(names)
            if chosen < len(tasks):
                before, self._current = self._current, tasks[chosen]
                if self._current is before:
                    return True
                self._current.turn.release()
                return False
            self._happen(chosen - len(tasks))
        self._abandon()
        return False

    def _happen(self, number: int) -> None:
        _, event = self._events.pop(number)
        try:
            event()
        except BaseException as error:
            self._error = self._error or error

    def _abandon(self) -> None:
        """Wake all tasks that are left, to end; the last one to end comes here too."""
        if all(t.done for t in self._tasks):
            self._finished.release()
        for task in self._tasks:
            if not task.done:
                task.turn.release()


def by_priority(order: Sequence[Name]) -> Callable[[Sequence[Name]], int]:
    """Choose whoever comes first in `order`: the others wait as long as they can be made to."""
    rank = {name: i for i, name in enumerate(order)}
    return lambda names: min(range(len(names)), key=lambda i: rank[names[i]])


def at_random(seed: int) -> Callable[[Sequence[Name]], int]:
    """Choose at random, the same again for the same seed."""
    generator = random.Random(seed)
    return lambda names: generator.randrange(len(names))
