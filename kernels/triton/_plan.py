"""A plan: everything that one call does on its device, as a value made before any of it is done.

A launcher returns a plan. `_run` runs it at the first call and `_replay` at later ones, so what
is missing from a plan is missing from the first result too.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from ._arch import Arch
from ._launch import Launch
from ._operands import Operand, Tensors


class Call:
    """function(*args), for PyTorch's own operations: with a tensor for each operand among the args.

    The function writes into some of these tensors; what it returns is dropped.
    """

    def __init__(self, function: Callable, *args: Any):
        self.function, self.args = function, args

    def operands(self) -> Iterator[Operand]:
        """Yield the operands that the function reads or writes."""
        return (a for a in self.args if isinstance(a, Operand))

    def run(self, tensors: Tensors) -> None:
        """Call the function."""
        self.function(*(tensors.tensor(a) if isinstance(a, Operand) else a for a in self.args))


class Choice(NamedTuple):
    """Steps of which there are several equivalent ways; the tuner takes one (`_tuning.choose`).

    key: what the choice depends on besides the candidates; a tuple is a format and its values, put
    together when the choice is looked up on disk. steps(candidate): what that candidate does; it has
    the same effect however often it is run. Copies of arguments that it needs are made outside, so
    that they are not measured.
    """

    arch: Arch
    key: str | tuple
    candidates: Sequence[Any]
    steps: Callable[[Any], Sequence["Step"]]
    device: torch.device


Step = Launch | Call | Choice


class Plan(NamedTuple):
    """The steps of one call, in order, and what they leave: one operand, or a tuple of several.

    A result is memory of its own (`empty`), whole and contiguous.
    """

    steps: Sequence[Step]
    results: Operand | tuple[Operand, ...]

    @property
    def outputs(self) -> tuple[Operand, ...]:
        """The results, as a tuple also where there is one."""
        return self.results if isinstance(self.results, tuple) else (self.results,)


def every_launch(steps: Iterable[Step]) -> Iterator[Launch]:
    """Yield every launch that `steps` can make, with any candidate."""
    for step in steps:
        if isinstance(step, Choice):
            for candidate in step.candidates:
                yield from every_launch(step.steps(candidate))
        elif isinstance(step, Launch):
            yield step
