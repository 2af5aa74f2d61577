"""What a launcher did once, done again without finding it out again.

A launcher checks its arguments, chooses a tile and hands Triton some thirty arguments a kernel
by name, which Triton binds, specializes and looks up: 180 microseconds of one core a fused
linear, where the floor of 4096 rows of it is 50 on an H200. All of that depends on shapes, strides, types
and 16-byte alignment alone. So the first call of each kind is traced, and later ones replay
its launches with new addresses (`bench/launch`).
"""

import inspect
import os
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import torch
import triton
from triton.runtime.driver import driver

from ._gemm import TensorDescriptor
from ._launch import cdiv, on
from ._trace import Called, Launched, Trace, recording, tracing

ALIGNMENT = 256
"""Bytes between pieces of the memory that passes from launch to launch: what CUDA's allocator gives."""

LIMIT = 4096
"""Plans kept: far more than the layers of a model times its batch shapes. Beyond, all are dropped."""

_plans: dict[tuple, "Plan | None"] = {}
_UNSEEN = object()


def planned(launcher: Callable) -> Callable:
    """`launcher`, traced at its first call of each kind and replayed at later ones.

    A call whose arguments need a copy first (a strided bias), or overlap, is never replayed.
    """
    signature = inspect.signature(launcher)

    @wraps(launcher)
    def call(*args, **kwargs):
        if recording():
            return launcher(*args, **kwargs)
        if kwargs:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            args = bound.args
        key = _key(launcher, args)
        plan = _plans.get(key, _UNSEEN)
        if plan is _UNSEEN:
            return _first(launcher, args, key)
        return launcher(*args) if plan is None else plan(args)

    return call


def forget() -> None:
    """Drop all plans: the choices they were made with are void."""
    _plans.clear()


def _key(launcher: Callable, args: tuple) -> tuple:
    """Everything a launcher's behaviour depends on."""
    kinds = tuple(
        (a.shape, a.stride(), a.dtype, a.device, a.data_ptr() % 16 == 0) if isinstance(a, torch.Tensor) else a
        for a in args
    )
    return launcher, os.environ.get("CONVERT_TO_QUANT_AUTOTUNE"), kinds


def _first(launcher: Callable, args: tuple, key: tuple):
    trace = Trace()
    with tracing(trace):
        result = launcher(*args)
    if trace.kept:
        if len(_plans) >= LIMIT:
            forget()
        try:
            _plans[key] = Plan(trace, args, result)
        except _Foreign:
            _plans[key] = None
    return result


class _Foreign(Exception):
    """A tensor that is not of one argument or one `empty`: a copy that a plan would not make."""


class _Result(NamedTuple):
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class _View(NamedTuple):
    """A tensor within a source: an argument, a result or the scratch memory. offset is in bytes."""

    source: int
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def of(self, sources: list[torch.Tensor]) -> torch.Tensor:
        base = sources[self.source]
        known = base.shape, base.stride(), base.dtype
        if self.offset == 0 and known == (self.shape, self.stride, self.dtype):
            return base
        if base.dtype != self.dtype:  # scratch memory, in bytes
            size = base.numel() - (base.numel() - self.offset) % self.dtype.itemsize
            base = base[self.offset : size].view(self.dtype)
            return base.as_strided(self.shape, self.stride)
        start = base.storage_offset() + self.offset // self.dtype.itemsize
        return base.as_strided(self.shape, self.stride, start)


class _Sources:
    """Where the tensors of a trace come from, as numbers: arguments, then results, then one scratch."""

    def __init__(self, trace: Trace, args: tuple, results: tuple):
        self.inputs = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor)]
        self._known = [(args[i], n, 0) for n, i in enumerate(self.inputs)]
        self.results: list[_Result] = []
        self.scratch = 0
        rest = list(trace.made)
        for result in results:
            made = next((t for t in rest if _same_memory(t, result)), None)
            if made is None or not result.is_contiguous() or result.numel() != made.numel():
                raise _Foreign
            rest = [t for t in rest if t is not made]
            self._known.append((made, len(self.inputs) + len(self.results), 0))
            self.results.append(_Result(result.shape, result.dtype, result.device))
        for made in rest:
            self._known.append((made, len(self.inputs) + len(self.results), self.scratch))
            self.scratch += max(1, cdiv(made.numel() * made.itemsize, ALIGNMENT)) * ALIGNMENT

    def view(self, tensor: torch.Tensor) -> _View:
        """`tensor` as a view of its source; _Foreign when that is not known for certain."""
        found = [k for k in self._known if _within(tensor, k[0])]
        if len(found) != 1 or found[0][0].dtype != tensor.dtype:
            raise _Foreign
        base, number, start = found[0]
        offset = start + tensor.data_ptr() - base.data_ptr()
        return _View(number, offset, tensor.shape, tensor.stride(), tensor.dtype)


def _same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.untyped_storage()._cdata == b.untyped_storage()._cdata


def _within(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether all of a lies between the first and the last element of b."""
    if a is b or not _same_memory(a, b):
        return a is b
    ends = [t.data_ptr() + _extent(t) for t in (a, b)]
    return b.data_ptr() <= a.data_ptr() and ends[0] <= ends[1]


def _extent(t: torch.Tensor) -> int:
    """Bytes from the first element of t to the end of its last."""
    last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return (last + 1) * t.itemsize if t.numel() else 0


class Plan:
    """The steps of one call: callable with other arguments of the same kind."""

    def __init__(self, trace: Trace, args: tuple, result):
        results = result if isinstance(result, tuple) else (result,)
        sources = _Sources(trace, args, results)
        self._inputs = sources.inputs
        self._results = sources.results
        self._scratch = sources.scratch
        self._single = not isinstance(result, tuple)
        self._device = results[0].device
        self._steps = [_step(s, sources, self._device) for s in trace.steps]
        self._compiled = any(isinstance(s, _CompiledStep) for s in self._steps)

    def __call__(self, args: tuple):
        sources = [args[i] for i in self._inputs]
        results = [torch.empty(s, dtype=t, device=d) for s, t, d in self._results]
        sources += results
        if self._scratch:
            sources.append(torch.empty((self._scratch,), dtype=torch.uint8, device=self._device))
        if not self._compiled or self._device.index in (None, driver.active.get_current_device()):
            self._run(sources)
        else:
            with on(self._device):
                self._run(sources)
        return results[0] if self._single else tuple(results)

    def _run(self, sources: list[torch.Tensor]) -> None:
        addresses = [s.data_ptr() for s in sources]
        stream = driver.active.get_current_stream(self._device.index) if self._compiled else None
        for step in self._steps:
            step(sources, addresses, stream)


def _step(step: Launched | Called, sources: _Sources, device: torch.device):
    if isinstance(step, Called):
        return _CalledStep(step, sources)
    if step.compiled is None or device.type == "xpu":  # whose launcher may not take addresses
        return _LaunchStep(step, sources, device)
    return _CompiledStep(step, sources)


class _CalledStep:
    """A function of PyTorch's operations, on tensors."""

    def __init__(self, step: Called, sources: _Sources):
        self._function = step.function
        self._args = [sources.view(a) if isinstance(a, torch.Tensor) else a for a in step.args]

    def __call__(self, sources, addresses, stream):
        self._function(*(a.of(sources) if isinstance(a, _View) else a for a in self._args))


class _LaunchStep:
    """A launch by name, on tensors: for the interpreter, and where Triton wants tensors."""

    def __init__(self, step: Launched, sources: _Sources, device: torch.device):
        launch, self._device = step.launch, device
        self._kernel, self._grid, self._keywords = launch.kernel, launch.grid, launch.keywords()
        tensors = {k: t for k, v in launch.args.items() if (t := _base(v)) is not None}
        self._views = {k: sources.view(t) for k, t in tensors.items()}
        self._boxes = {k: launch.args[k].block_shape for k, t in tensors.items() if launch.args[k] is not t}
        self._constants = {k: v for k, v in launch.args.items() if k not in tensors}

    def __call__(self, sources, addresses, stream):
        tensors = {k: v.of(sources) for k, v in self._views.items()}
        for k, box in self._boxes.items():
            tensors[k] = TensorDescriptor.from_tensor(tensors[k], box)
        with on(self._device):
            self._kernel[self._grid](**self._constants, **tensors, **self._keywords)


class _CompiledStep:
    """A launch of the compiled kernel, on addresses: nothing is bound, specialized or looked up."""

    def __init__(self, step: Launched, sources: _Sources):
        launch = step.launch
        self._kernel = step.compiled
        self._run, self._function = step.compiled.run, step.compiled.function
        self._metadata = step.compiled.packed_metadata
        # Triton before 3.4 keeps the hooks of profilers on the class.
        self._hooks = triton.knobs.runtime if hasattr(triton, "knobs") else type(step.compiled)
        self._grid = (*launch.grid, 1, 1)[:3]
        self._values = [launch.args[name] for name in launch.kernel.arg_names]
        self._slots, self._descriptors = [], []
        for position, value in enumerate(self._values):
            if (base := _base(value)) is None:
                continue
            view = sources.view(base)
            if base is value:
                self._slots.append((position, view.source, view.offset))
                self._values[position] = 0
            else:
                self._values[position] = None
                self._descriptors.append((position, view.source, view.offset, {**vars(value), "base": None}))

    def __call__(self, sources, addresses, stream):
        values = self._values.copy()
        for position, source, offset in self._slots:
            values[position] = addresses[source] + offset
        for position, source, offset, template in self._descriptors:
            descriptor = object.__new__(TensorDescriptor)  # its checks held at the first call
            descriptor.__dict__.update(template, base=_Address(addresses[source] + offset))
            values[position] = descriptor
        enter, leave = self._hooks.launch_enter_hook, self._hooks.launch_exit_hook
        note = None
        if getattr(enter, "calls", enter) or getattr(leave, "calls", leave):  # a profiler listens
            note = self._kernel.launch_metadata(self._grid, stream, *values)
        else:
            enter = leave = None
        self._run(*self._grid, stream, self._function, self._metadata, note, enter, leave, *values)


class _Address(int):
    """What a descriptor asks of its base."""

    def data_ptr(self) -> int:
        return int(self)


def _base(value: Any) -> torch.Tensor | None:
    """The tensor behind a kernel's argument."""
    if isinstance(value, torch.Tensor):
        return value
    base = getattr(value, "base", None)
    return base if isinstance(base, torch.Tensor) else None
