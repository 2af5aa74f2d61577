"""Where the values of a conversion's layers are computed: here, one after the other, or by an executor."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch

from ...formats.errors import ConversionError
from ...quant.algorithms import LayerStats, QuantizeOptions
from ..executor import Executor, Need, Task
from ..options.settings import Settings
from ..plan.devices import place_again
from ..plan.estimate import PROCESS_BYTES, bytes_held, in_flight_limit, read_bytes
from ..plan.steps import Plan, Step
from ..quantize.layer import quantize_step
from .pipeline import Stopped

Made = Callable[[], tuple[dict[str, torch.Tensor], str | None]]
"""Waits for what `quantize_step` returns, and returns or raises it."""

_AHEAD = 4096
"""Steps that may wait behind a layer; what they hold in memory is limited apart from that."""


class Maker(Protocol):
    """Makes the values of layers. settings: for the plan. ahead: steps that may wait to be written."""

    settings: Settings
    ahead: int

    def plan(self, plan: Plan) -> Plan:
        """Return the plan with its layers placed where they will be computed."""

    def limit(self, plan: Plan) -> int:
        """Return the bytes that all steps together may hold while the plan runs."""

    def make(
        self,
        step: Step,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        stats: LayerStats | None,
        options: QuantizeOptions,
    ) -> Made:
        """Compute what `quantize_step` does, now or later."""

    def stop(self) -> None:
        """End what is being computed, from another thread."""


def maker_of(settings: Settings, executor: Executor | None) -> Maker:
    """Return the maker of a conversion."""
    return _Here(settings) if executor is None else _There(settings, executor)


class _Here:
    ahead = 2

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def plan(self, plan: Plan) -> Plan:
        return plan

    def limit(self, plan: Plan) -> int:
        return in_flight_limit(plan, self.settings.low_memory)

    def make(
        self,
        step: Step,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        stats: LayerStats | None,
        options: QuantizeOptions,
    ) -> Made:
        made = quantize_step(step, weight, bias, stats, options)
        return lambda: made

    def stop(self) -> None:
        pass


class _There:
    """Sends the layers that take long away: as many as run at once, and as many again that wait for them.

    Rounding stays here: it is over sooner than its weight is sent.
    """

    ahead = _AHEAD

    def __init__(self, settings: Settings, executor: Executor) -> None:
        self._settings, self._executor = settings, executor
        self.settings = replace(settings, device="cpu")  # the devices here do not matter
        self._room = threading.Semaphore(0)
        self._rooms = 0
        self._running: set[Task] = set()
        self._lock, self._stopped = threading.Lock(), False

    def plan(self, plan: Plan) -> Plan:
        _require_device_name(self._settings)
        sent = [s for s in plan.quantized if s.placement is not None]
        if not sent:
            note = "every layer is rounded to nearest, which is done here: the cluster has no part in it"
            return replace(plan, notes=(*plan.notes, note))
        device, free = device_there(self._settings, self._executor)
        self._rooms = self._executor.slots(device != "cpu") * (1 if self._settings.low_memory else 2)
        self._room = threading.Semaphore(self._rooms)
        return place_again(plan, self._settings, device, free)

    def limit(self, plan: Plan) -> int:
        largest = max((bytes_held(s) for s in plan.quantized if s.placement is not None), default=0)
        return in_flight_limit(plan, self._settings.low_memory) + self._rooms * largest

    def make(
        self,
        step: Step,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        stats: LayerStats | None,
        options: QuantizeOptions,
    ) -> Made:
        if step.placement is None:
            made = quantize_step(step, weight, bias, stats, options)
            return lambda: made
        while not self._room.acquire(timeout=0.2):
            self._go_on()
        alone = replace(step, companions={}, merges=(), bias_merges=())  # they are in the weight
        need = need_of(step, stats)
        args = (alone, weight, bias, stats, options)
        task = self._executor.submit(step.layer_name, need, quantize_step, *args)
        with self._lock:
            self._running.add(task)
        if self._stopped:
            task.cancel()
        return lambda: self._wait(task)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for task in running:
            task.cancel()

    def _wait(self, task: Task) -> tuple[dict[str, torch.Tensor], str | None]:
        while not task.done(0.2):
            self._go_on()
        with self._lock:
            self._running.discard(task)
        self._room.release()
        return task.result()

    def _go_on(self) -> None:
        if self._stopped:
            raise Stopped


def device_there(settings: Settings, executor: Executor) -> tuple[str, int | None]:
    """Return the device that layers have on other machines, and its free memory, None for the CPU.

    ConversionError where no machine has what ``--device`` names.
    """
    _require_device_name(settings)
    if settings.device == "cpu":
        return "cpu", None
    free = executor.gpu_memory()
    if free is None and settings.device == "cuda":
        raise ConversionError("--device cuda: no machine of the Ray cluster has a GPU that torch can use")
    return ("cpu", None) if free is None else ("cuda", free)


def _require_device_name(settings: Settings) -> None:
    if settings.device not in ("auto", "cpu", "cuda"):
        raise ConversionError(
            f"--device {settings.device}: Ray gives each layer its own GPU; with --ray say auto, cuda or cpu"
        )


def need_of(step: Step, stats: LayerStats | None) -> Need:
    """Return what a layer takes where it is computed: its weight, inputs, results, work memory."""
    assert step.placement is not None
    on_gpu = step.placement.kind != "cpu"
    held = read_bytes(step) + step.output_bytes + (0 if on_gpu else step.placement.bytes)
    inputs = () if stats is None else (stats.samples, stats.extra_directions)
    return Need(PROCESS_BYTES + held + sum(x.nbytes for x in inputs if x is not None), on_gpu)
