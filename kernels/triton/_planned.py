"""From a launcher to a function of tensors: plan the first call of each kind, replay the plan later.

To check arguments, choose a tile and hand Triton some thirty arguments by name costs one core
some 190 microseconds per fused linear, where the floor of 4096 rows of it is 50 on an H200. All of
it depends on shapes, strides, types, devices and 16-byte alignment alone (`python bench/launch`).
"""

import inspect
import logging
import os
from collections.abc import Callable
from functools import update_wrapper
from typing import Any

import torch

from . import _kept
from ._operands import Operand, argument
from ._plan import Plan
from ._replay import Replay
from ._run import Done, run

_log = logging.getLogger("convert_to_quant.kernels")
_said: set[str] = set()


class planned:
    """Make of a launcher, which is given operands and returns a Plan, a function of tensors.

    The first call of each kind runs the plan (`_run`) and keeps it; later ones replay it
    (`_replay`). With CONVERT_TO_QUANT_REPLAY=0, read at each call, every call plans anew and nothing
    is kept. `plan` is the launcher itself: for a look at what it would do.
    """

    def __init__(self, launcher: Callable[..., Plan]):
        update_wrapper(self, launcher)
        self.plan = launcher
        self._signature = inspect.signature(launcher)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs:
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            args = bound.args
        if os.environ.get("CONVERT_TO_QUANT_REPLAY") == "0":
            return run(self._plan(args), args)[0]
        key = self.key(args)
        again = _kept.PLANS.get(key)
        return self._first(args, key) if again is None else again(args)

    def key(self, args: tuple) -> tuple:
        """Return the kind of a call: everything that its plan depends on."""
        kinds = [
            (a.shape, a.stride(), a.dtype, a.device, a.data_ptr() % 16 == 0)
            if isinstance(a, torch.Tensor)
            else a
            for a in args
        ]
        return (self.plan, os.environ.get("CONVERT_TO_QUANT_AUTOTUNE"), *kinds)

    def _plan(self, args: tuple) -> Plan:
        operands: list[Any] = []
        home, mixed = None, False
        for i, a in enumerate(args):
            if isinstance(a, torch.Tensor):
                a = argument(i, a)
                if home is None:
                    home = a.device
                elif a.device != home:
                    mixed = True
            operands.append(a)
        if mixed:
            self._bring_home(operands)
        return self.plan(*operands)

    def _bring_home(self, operands: list[Any]) -> None:
        """Replace one-element floats that are on the CPU by copies on the device; refuse other mixtures.

        PyTorch takes such scalars too, and ComfyUI has some scales there. ValueError names what else is
        not on the device of the first argument.
        """
        names = list(self._signature.parameters)
        first = next(i for i, operand in enumerate(operands) if isinstance(operand, Operand))
        home = operands[first].device
        for i, operand in enumerate(operands):
            if not isinstance(operand, Operand) or operand.device == home:
                continue
            if operand.device.type != "cpu" or operand.numel() != 1 or not operand.dtype.is_floating_point:
                raise ValueError(
                    f"{self.plan.__name__}: {names[i]} is on {operand.device} and {names[first]} on {home}; "
                    "move them to one device"
                )
            operands[i] = operand.copy(device=home)

    def _first(self, args: tuple, key: tuple) -> Any:
        plan = self._plan(args)
        result, call = run(plan, args)
        if call.settled:
            _kept.keep(
                key, Again(self.plan.__name__, Plan([d.step for d in call.done], plan.results), call.done)
            )
        return result


class Again:
    """A kept plan: called with the arguments of another call of its kind, it gives that call's result.

    It replays while replays work. After one has failed it runs the plan as at the first call, for good.
    """

    def __init__(self, name: str, plan: Plan, done: list[Done]):
        self.name, self.plan = name, plan
        self.replay: Replay | None = None
        try:
            self.replay = Replay(plan, done)
        except Exception as error:  # whatever this Triton does not have
            _say_once(name, error)

    def __call__(self, args: tuple) -> Any:
        if self.replay is None:
            return run(self.plan, args)[0]
        try:
            return self.replay(args)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            result = run(self.plan, args)[0]  # an error of the launch itself is raised from here
            self.replay = None
            _say_once(self.name, error)
            return result


def _say_once(name: str, error: Exception) -> None:
    kind = type(error).__name__
    if kind not in _said:
        _said.add(kind)
        _log.warning("%s is launched anew at each call, not replayed: %s: %s", name, kind, error)
