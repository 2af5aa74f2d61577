"""A plan run as it stands: every launch by name, through Triton's own binding of arguments.

This is the first call of each kind, every call without replays, and what a replay falls back on.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ._operands import Memory, Operand, Tensors
from ._plan import Call, Choice, Launch, Plan, Step
from ._tuning import choose


class Done(NamedTuple):
    """A step that was run, and the kernel that Triton compiled for it (None for a Call)."""

    step: Launch | Call
    compiled: Any


class Run(Tensors):
    """One call under way: the memory it took so far, and the steps it has run, choices made.

    args: the launcher's arguments. outer: the call that this one is a trial of, whose memory it
    uses and extends by its own. settled: whether other calls of this kind may repeat the steps.
    """

    def __init__(self, args: tuple, outer: "Run | None" = None):
        self._args, self._outer = args, outer
        self._known: dict[int | Memory, torch.Tensor] = dict(enumerate(args))
        self.done: list[Done] = []
        self.settled = True

    def do(self, steps: Sequence[Step]) -> None:
        """Run `steps` in order; where there is a choice, let the tuner choose first."""
        for step in steps:
            if isinstance(step, Choice):
                self.do(step.steps(self._choose(step)))
            else:
                self.done.append(Done(step, step.run(self)))

    def _choose(self, choice: Choice) -> Any:
        def trial(candidate):
            Run(self._args, self).do(choice.steps(candidate))

        chosen, settled = choose(choice.arch, choice.key, choice.candidates, trial, choice.device)
        self.settled = self.settled and settled
        return chosen

    def result(self, operand: Operand) -> torch.Tensor:
        """Return the tensor of a result. ValueError where another call could not be given the same."""
        memory = operand.source
        if not isinstance(memory, Memory) or memory.copy_of is not None:
            raise ValueError(f"a plan's result must be memory of its own, not {operand}")
        made = self._known.get(memory)
        if made is None:
            if operand.numel():
                raise ValueError(f"no step of the plan writes its result {operand}")
            made = self._take(memory)
        return made if operand.whole else made.view(operand.shape)

    def source(self, operand: Operand) -> torch.Tensor:
        """Return the argument or the memory that an operand views."""
        source = operand.source
        known = self._known.get(source)
        if known is None:
            assert isinstance(source, Memory)  # arguments are known from the start
            return self._take(source)
        return known

    def _take(self, memory: Memory) -> torch.Tensor:
        """Return the tensor of `memory` of an outer call, or take (and, if it is a copy, fill) one."""
        run = self
        while run._outer is not None:
            run = run._outer
            if memory in run._known:
                return run._known[memory]
        made = torch.empty(memory.shape, dtype=memory.dtype, device=memory.device)
        if memory.copy_of is None:
            self._known[memory] = made
        else:  # the same for all trials
            run._known[memory] = made.copy_(self.tensor(memory.copy_of))
        return made


def run(plan: Plan, args: tuple) -> tuple[Any, Run]:
    """Run `plan` with the arguments that it was made for; return its result or results, and the call."""
    call = Run(args)
    call.do(plan.steps)
    if isinstance(plan.results, tuple):
        return tuple(map(call.result, plan.results)), call
    return call.result(plan.results), call
