"""A plan run again with other tensors of the same kind: nothing is bound, specialized or looked up.

Every tensor that a step names is found as a number and a distance: which argument, result or
piece of memory it is in, and how many bytes from its start. A launch then takes addresses.
"""

from typing import Any

import torch
import triton
from triton.runtime.driver import driver

from ._launch import Descriptor, Launch, cdiv, on
from ._operands import Memory, Operand, Tensors, all_of
from ._plan import Call, Plan
from ._run import Done

ALIGNMENT = 256
"""Bytes between pieces of the memory that passes from step to step: what CUDA's allocator gives."""


class Replay:
    """The steps of a plan that was run once: callable with the arguments of another call of its kind.

    Raises whatever a changed Triton may raise; `_planned` then runs the plan by name.
    """

    def __init__(self, plan: Plan, done: list[Done]):
        places = _Places(plan, done)
        self._positions, self._scratch, self._scratch_device = places.arguments, places.size, places.device
        self._results = [(o.shape, o.dtype, o.device) for o in plan.outputs]
        self._single = not isinstance(plan.results, tuple)
        self._steps = [_Named(_copying(m), places) for m in places.copies]
        self._steps += [_again(d, places) for d in done]
        addressed = [s for s in self._steps if isinstance(s, _Addressed)]
        self._device = addressed[0].device if addressed else None

    def __call__(self, args: tuple) -> Any:
        results = [torch.empty(s, dtype=t, device=d) for s, t, d in self._results]
        sources = [args[i] for i in self._positions]
        sources += results
        if self._scratch:
            sources.append(torch.empty((self._scratch,), dtype=torch.uint8, device=self._scratch_device))
        device = self._device
        if device is None or device.index is None or device.index == driver.active.get_current_device():
            self._run(sources, device)
        else:
            with on(device):
                self._run(sources, device)
        return results[0] if self._single else tuple(results)

    def _run(self, sources: list[torch.Tensor], device: torch.device | None) -> None:
        """Take the steps. `device` is where kernels are launched by address; None where none is."""
        addresses, stream = [], None
        if device is not None:
            addresses = [s.data_ptr() for s in sources]
            stream = driver.active.get_current_stream(device.index)
        for step in self._steps:
            step(sources, addresses, stream)


class _Places:
    """Where each argument and memory of a plan is in a call: (number of its tensor, bytes from its start).

    The tensors are the arguments that steps name, the results, and one piece for all other memory.
    ValueError where that cannot be.
    """

    def __init__(self, plan: Plan, done: list[Done]):
        found = list(dict.fromkeys(o.source for d in done for o in d.step.operands()))
        before = list(dict.fromkeys(source for f in found for source in _made_before(f)))
        self.copies = [m for m in before if isinstance(m, Memory)]
        sources = list(dict.fromkeys([*before, *found]))
        self.arguments = [s for s in sources if isinstance(s, int)]
        known = [*self.arguments, *(o.source for o in plan.outputs)]
        self._of: dict[int | Memory, tuple[int, int]] = {s: (n, 0) for n, s in enumerate(known)}
        if len(self._of) < len(known):
            raise ValueError("a plan gives one memory as two results")
        self._last, self.size = len(known), 0
        rest = [m for m in sources if isinstance(m, Memory) and m not in self._of]
        self.device = rest[0].device if rest else None
        for memory in rest:
            if memory.device != self.device:
                raise ValueError(
                    f"a plan takes memory of one device, not of {memory.device} and {self.device}"
                )
            self._of[memory] = self._last, self.size
            self.size += max(1, cdiv(memory.nbytes, ALIGNMENT)) * ALIGNMENT

    def of(self, operand: Operand) -> tuple[int, int]:
        """Return the place of an operand."""
        return self._of[operand.source]

    def source(self, operand: Operand, sources: list[torch.Tensor]) -> torch.Tensor:
        """Return the argument or the memory that an operand views, given the tensors of a call."""
        memory = operand.source
        number, start = self._of[memory]
        base = sources[number]
        if isinstance(memory, int):
            return base
        if number == self._last:
            base = base[start : start + memory.nbytes].view(memory.dtype)
        return base.view(memory.shape)


def _made_before(source: int | Memory) -> list[int | Memory]:
    """Return a copy after all that it is a copy of; nothing for what is no copy."""
    if isinstance(source, int) or source.copy_of is None:
        return []
    origin = source.copy_of.source
    return [*(_made_before(origin) or [origin]), source]


def _copying(memory: Memory) -> Call:
    return Call(torch.Tensor.copy_, all_of(memory), memory.copy_of)


def _again(done: Done, places: _Places):
    # XPU's launcher may not take addresses; the interpreter compiles nothing.
    if isinstance(done.step, Call) or done.compiled is None or done.step.device.type == "xpu":
        return _Named(done.step, places)
    return _Addressed(done.step, done.compiled, places)


class _Named:
    """A step run as at the first call, on tensors."""

    def __init__(self, step: Launch | Call, places: _Places):
        self._step, self._places = step, places

    def __call__(self, sources, addresses, stream):
        self._step.run(_Placed(self._places, sources))


class _Placed(Tensors):
    """The tensors of operands, from the tensors of a replay."""

    def __init__(self, places: _Places, sources: list[torch.Tensor]):
        self._places, self._sources = places, sources

    def source(self, operand: Operand) -> torch.Tensor:
        return self._places.source(operand, self._sources)


class _Addressed:
    """A launch of the compiled kernel, on addresses."""

    def __init__(self, launch: Launch, compiled: Any, places: _Places):
        self._kernel, self.device = compiled, launch.device
        self._run, self._function = compiled.run, compiled.function
        self._metadata = compiled.packed_metadata
        # Triton before 3.4 keeps the hooks of profilers on the class.
        self._hooks = triton.knobs.runtime if hasattr(triton, "knobs") else type(compiled)
        self._grid = (*launch.grid, 1, 1)[:3]
        self._values = [launch.args[name] for name in launch.kernel.arg_names]
        self._slots, self._descriptors = [], []
        for position, value in enumerate(self._values):
            if isinstance(value, Operand):
                self._slots.append((position, *places.of(value)))
                self._values[position] = 0
            elif isinstance(value, Descriptor):
                self._descriptors.append((position, *places.of(value.base), _template(value)))
                self._values[position] = None

    def __call__(self, sources, addresses, stream):
        values = self._values.copy()
        for position, source, offset in self._slots:
            values[position] = addresses[source] + offset
        for position, source, offset, (kind, fields) in self._descriptors:
            descriptor = object.__new__(kind)  # its checks held at the first call
            descriptor.__dict__.update(fields, base=_Address(addresses[source] + offset))
            values[position] = descriptor
        enter, leave = self._hooks.launch_enter_hook, self._hooks.launch_exit_hook
        note = None
        if getattr(enter, "calls", enter) or getattr(leave, "calls", leave):  # a profiler listens
            note = self._kernel.launch_metadata(self._grid, stream, *values)
        else:
            enter = leave = None
        self._run(*self._grid, stream, self._function, self._metadata, note, enter, leave, *values)


def _template(descriptor: Descriptor) -> tuple[type, dict[str, Any]]:
    """Return the class of the TensorDescriptor and its fields, but for the base: the same in every call."""
    base = descriptor.base
    like = torch.empty_strided(base.shape, base.stride(), dtype=base.dtype, device="meta")
    made = descriptor.of(like)
    return type(made), {**vars(made), "base": None}


class _Address(int):
    """What a descriptor asks of its base."""

    def data_ptr(self) -> int:
        return int(self)
