"""Where the parts of conversions are computed: in this process, or by an executor on other machines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Need:
    """What a piece of work takes where it runs. memory: bytes. gpu: whether a GPU, for itself."""

    memory: int
    gpu: bool = False


@dataclass(frozen=True)
class Reached:
    """How far a piece of work is: the share that is done, from 0 to 1, and the layer that was done last."""

    share: float
    layer: str = ""


class Task(Protocol):
    """A piece of work that was handed over. It is done again where the process that had it is lost."""

    def done(self, timeout: float) -> bool:
        """Wait for its end, at most `timeout` seconds; return whether it has come."""

    def result(self) -> Any:
        """Return what the function returned. ConversionError for what it raised, or when it was lost."""

    def cancel(self) -> None:
        """End it, whether it runs or waits."""

    def reached(self) -> Reached:
        """Return how far it is, where it was submitted as `watched`."""


class Executor(Protocol):
    """Runs functions on other machines. Its methods may be called from several threads."""

    def slots(self, gpu: bool) -> int:
        """Return how many pieces of work run at once, each with a GPU or each without."""

    def gpu_memory(self) -> int | None:
        """Return the free bytes of the GPU that has the least of them; None where there is no GPU."""

    def submit(
        self, name: str, need: Need, function: Callable[..., Any], *args: Any, watched: bool = False
    ) -> Task:
        """Hand a function of this package over, with what it takes; tensors may be among it.

        name: of the work, for messages. watched: the function takes a `Progress` after `args`.
        ConversionError where no machine can ever have what is needed.
        """
