"""Pieces of conversions as Ray tasks, done again when their process or machine is lost."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch

from ...formats.errors import ConversionError
from ...version import DISTRIBUTION
from ..executor import Need, Reached
from .address import asked_address
from .machines import Machines, look_at, on_node
from .parcel import Parcel
from .worker import Board, Failure, perform, versions

MOST_LOSSES = 3
"""A piece of work that lost its process so often is not given another one: it is what kills them."""

_STALE = 0.3
_PATIENCE = 10.0


class RayExecutor:
    """A Ray cluster as an `executor.Executor`; a context manager that leaves the cluster at its end.

    address: HOST:PORT of the cluster's head, "auto" for the cluster that runs on this machine, "local" for
        one of its own. None: what RAY_ADDRESS says, else "local". A process that is connected to Ray stays
        connected, and `address` is then left out.
    tell: gets a line on the cluster once it is known, and on each piece of work that is done again.

    It connects when it is first needed. Each piece of work has as many threads as torch has here
    (OMP_NUM_THREADS), for the same bytes as without a cluster. ConversionError where Ray is not installed, or
    nothing answers at the address, and where a machine has another version of this package or of torch.

        with RayExecutor("auto") as executor:
            convert_many(["models"], "int8", pattern="*.safetensors", executor=executor)
    """

    def __init__(self, address: str | None = None, tell: Callable[[str], None] = lambda line: None) -> None:
        try:
            import ray
        except ImportError as e:
            raise ConversionError(f"--ray: ray is needed: pip install '{DISTRIBUTION}[ray]'") from e
        self._ray: Any = ray
        self._address = asked_address(address)
        self._joined = ray.is_initialized()
        if self._joined and address is not None:
            raise ConversionError("this process is connected to a Ray cluster already: name no address")
        self._tell, self._threads = tell, torch.get_num_threads()
        self._lock = threading.Lock()
        self._found: Machines | None = None
        self._perform: Any = None
        self._board: Any = None
        self._keys = itertools.count()
        self._reached: dict[int, Reached] = {}
        self._read_at = 0.0

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster, which ends what still runs there; one that was begun here ends."""
        found, self._found = self._found, None
        if found is not None and not self._joined:
            self._ray.shutdown()

    def slots(self, gpu: bool) -> int:
        """Return how many pieces of work run at once."""
        return self._machines().slots(gpu)

    def gpu_memory(self) -> int | None:
        """Return the least free memory of a GPU."""
        return self._machines().gpu_memory

    def submit(
        self, name: str, need: Need, function: Callable[..., Any], *args: Any, watched: bool = False
    ) -> RayTask:
        """Hand a function over; see `executor.Executor`."""
        self.require(name, need)
        key = next(self._keys)
        parcel = self._ray.put(Parcel.of((function, args)))
        board = self._board_here() if watched else None
        machines = self._machines()

        def start() -> Any:
            options = {"num_cpus": machines.cpus(need.gpu), "num_gpus": int(need.gpu), "memory": need.memory}
            called = self._perform.options(**options, name=f"ctq {name}")
            return called.remote(parcel, self._threads, versions(), board, key)

        return RayTask(self, self._ray, name, need, key, start)

    def require(self, name: str, need: Need) -> None:
        """Raise ConversionError where no machine that is there could ever do a piece of work."""
        self._machines().require(name, need, self._ray.nodes())

    def tell(self, line: str) -> None:
        """Pass a line on."""
        self._tell(line)

    def reached(self, key: int) -> Reached:
        """Return how far a watched piece of work is; what cannot be told stays as it was."""
        with self._lock:
            if self._board is not None and time.monotonic() - self._read_at > _STALE:
                with contextlib.suppress(self._ray.exceptions.RayError):
                    self._reached |= self._ray.get(self._board.read.remote(), timeout=_STALE)
                self._read_at = time.monotonic()
            return self._reached.get(key, Reached(0.0))

    def _machines(self) -> Machines:
        with self._lock:
            if self._found is None:
                self._found = self._connect()
            return self._found

    def _connect(self) -> Machines:
        from .connection import connect

        if not self._joined:
            connect(self._ray, self._address)
        try:
            machines = look_at(self._ray, self._threads)
        except BaseException:
            if not self._joined:
                self._ray.shutdown()
            raise
        self._perform = self._ray.remote(max_retries=0)(perform)
        self._tell(machines.summary())
        return machines

    def _board_here(self) -> Any:
        with self._lock:
            if self._board is None:
                here = self._ray.get_runtime_context().get_node_id()
                made = self._ray.remote(num_cpus=0)(Board)
                self._board = made.options(scheduling_strategy=on_node(self._ray, here, soft=True)).remote()
            return self._board


class RayTask:
    """A piece of work on a Ray cluster (`executor.Task`).

    Ray is not left to do it again: it would try without end what takes more memory than there is.
    """

    def __init__(
        self, executor: RayExecutor, ray: Any, name: str, need: Need, key: int, start: Callable[[], Any]
    ) -> None:
        self._executor, self._ray, self._name, self._need = executor, ray, name, need
        self._key, self._start = key, start
        self._losses, self._checked = 0, time.monotonic()
        self._reference = start()
        self._answer: Any = None
        self._ended = False

    def done(self, timeout: float) -> bool:
        """Wait for the end; begin again what was lost."""
        if self._ended:
            return True
        ready, _ = self._ray.wait([self._reference], timeout=timeout)
        if not ready:
            self._require_machines()
            return False
        e = self._ray.exceptions
        lost = (e.WorkerCrashedError, e.NodeDiedError, e.OutOfMemoryError, e.ObjectLostError)
        try:
            self._answer = self._ray.get(self._reference).opened()
        except lost as error:
            self._again(error)
            return self._ended
        except e.RayError as error:
            self._answer = Failure(f"{self._name}: Ray: {_first_line(error)}", str(error))
        self._ended = True
        return True

    def result(self) -> Any:
        """Return what the function returned, or raise what it raised, in words."""
        while not self.done(1.0):
            pass
        if isinstance(self._answer, Failure):
            raise ConversionError(self._answer.words) from RuntimeError(self._answer.trace)
        return self._answer

    def cancel(self) -> None:
        """End the process that does it, or take it out of the queue."""
        if not self._ended:
            self._ray.cancel(self._reference, force=True)

    def reached(self) -> Reached:
        """Return how far it is."""
        return self._executor.reached(self._key)

    def _again(self, error: Exception) -> None:
        self._losses += 1
        reason = "ran out of memory" if "memory" in type(error).__name__.lower() else "was lost"
        if self._losses >= MOST_LOSSES:
            self._answer = Failure(
                f"{self._name}: {self._losses} times the process that did it {reason}: {_first_line(error)}",
                str(error),
            )
            self._ended = True
            return
        self._executor.tell(f"{self._name}: the process that did it {reason}; it is done again")
        self._reference = self._start()

    def _require_machines(self) -> None:
        """See, now and then, that a machine is left that can do it."""
        if time.monotonic() - self._checked > _PATIENCE:
            self._checked = time.monotonic()
            self._executor.require(self._name, self._need)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
