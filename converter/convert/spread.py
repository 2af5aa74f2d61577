"""Several models at once on other machines, each a piece of work on files that all share."""

from __future__ import annotations

import os
import platform
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...files.remote.address import located
from ...files.stamp import fingerprint
from ...formats.errors import CheckpointError, ConversionError, OutputBusyError
from ..executor import Executor, Need, Task
from ..options.settings import Settings
from ..plan.inputs import files_named, other_inputs
from ..progress import Progress
from .batch import Batch, BatchReport, Foreseen, Outcome, outcome_of
from .making import device_there

_BUSY = 120.0
"""Seconds to wait for a lock: that of a machine that was lost may outlive it."""

_PAUSE = 0.2


@dataclass(frozen=True)
class Place:
    """A conversion's files. folder: that paths start from. prints: the inputs and their `fingerprint`s."""

    folder: str
    prints: tuple[tuple[str, str], ...]


def goes_by_model(batch: Batch, executor: Executor) -> bool:
    """Return whether models are the pieces of work; else the layers of one model after the other are.

    Layers are where there are fewer models than run at once, and each has layers that take long.
    """
    gpu = executor.gpu_memory() is not None and all(job.device != "cpu" for job in batch.jobs)
    return len(batch.jobs) >= executor.slots(gpu) or not all(f.slow for f in batch.foreseen)


def run_spread(
    batch: Batch,
    executor: Executor,
    tell: Callable[[str], None],
    progress: Progress,
    show: Callable[[Settings, Any], None] = lambda job, report: None,
) -> BatchReport:
    """Convert all models, as many at once as the executor has room for, going on after one that fails.

    tell: gets a line on each model that is done. progress: of all models together. show: gets the report of
    each. The report has the models in their order. An interruption ends all of them; what they had written is
    gone on with by the next run.
    """
    tally = _Tally(batch, progress)
    outcomes: dict[int, Outcome] = {}
    running: dict[int, Task] = {}
    waiting = deque(range(len(batch.jobs)))

    def ended(number: int, found: Outcome) -> None:
        outcomes[number] = found
        progress.stop()
        tell(f"[{len(outcomes)}/{len(batch.jobs)}] {found.input}")
        if found.error:
            tell(f"error: {found.error}")
        else:
            show(batch.jobs[number], found.report)
        tally.begin(running, outcomes)

    most = _most(executor)
    tally.begin(running, outcomes)
    try:
        while waiting or running:
            while waiting and len(running) < most:
                number = waiting.popleft()
                try:
                    running[number] = _handed_over(batch.jobs[number], batch.foreseen[number], executor)
                except ConversionError as e:
                    ended(number, _failed(batch.jobs[number], str(e)))
            for number in [n for n, task in running.items() if task.done(0)]:
                ended(number, _outcome(batch.jobs[number], running.pop(number)))
            tally.move(running, outcomes)
            time.sleep(_PAUSE)
    finally:
        progress.stop()
        for task in running.values():
            task.cancel()
    return BatchReport(tuple(outcomes[n] for n in range(len(batch.jobs))), batch.notes)


def _most(executor: Executor) -> int:
    """Return how many models are handed over: twice what runs at once, so that none waits for this loop."""
    gpus = executor.slots(True) if executor.gpu_memory() is not None else 0
    return 2 * (executor.slots(False) + gpus)


def _handed_over(job: Settings, foreseen: Foreseen, executor: Executor) -> Task:
    gpu = foreseen.slow and device_there(job, executor)[0] != "cpu"
    need = Need(foreseen.memory, gpu)
    return executor.submit(located(job.input_file).name, need, convert_there, job, _place(job), watched=True)


def _place(job: Settings) -> Place:
    prints = []
    for path in [*files_named(job.input_file), *other_inputs(job)]:
        try:
            prints.append((str(path), fingerprint(path)))
        except CheckpointError:  # whoever reads it says what is wrong with it
            continue
    return Place(os.getcwd(), tuple(prints))


def convert_there(job: Settings, place: Place, progress: Progress) -> Outcome:
    """Convert a model on the machine that this runs on. ConversionError where its files are others here."""
    try:
        os.chdir(place.folder)
        same = all(fingerprint(Path(path)) == print for path, print in place.prints)
    except (OSError, CheckpointError):
        same = False
    if not same:
        raise ConversionError(
            f"{located(job.input_file)}: {platform.node()}, of the cluster, does not see the same files: "
            "models, LoRAs and calibration have to lie in a folder that all machines share, under one name"
        )
    return outcome_of(job, lambda settings: _when_free(settings, progress))


def _when_free(settings: Settings, progress: Progress) -> Any:
    """Convert once nobody else writes the output: a process that was lost may hold on to it for a while."""
    from .run import convert

    until = time.monotonic() + _BUSY
    while True:
        try:
            return convert(settings, progress)
        except OutputBusyError:
            if time.monotonic() > until:
                raise
            time.sleep(1)


def _outcome(job: Settings, task: Task) -> Outcome:
    """Return what became of a model: an error too where its output is not to be seen here."""
    try:
        found: Outcome = task.result()
    except ConversionError as e:
        return _failed(job, str(e))
    if found.error or (job.output_file and Path(job.output_file).exists()):
        return found
    text = f"{job.output_file}: was written on a machine that does not share this folder with this one"
    return replace(found, error=text, summary="", report=None)


def _failed(job: Settings, error: str) -> Outcome:
    return Outcome(str(located(job.input_file)), job.output_file or "", 0.0, error)


class _Tally:
    """The bytes of all models that are done, told to one Progress."""

    def __init__(self, batch: Batch, progress: Progress) -> None:
        self._sizes = [f.nbytes for f in batch.foreseen]
        self._progress, self._done = progress, 0

    def begin(self, running: dict[int, Task], outcomes: dict[int, Outcome]) -> None:
        """Show how far all are."""
        self._done = self._sum(running, outcomes)[0]
        self._progress.start(sum(self._sizes), self._done)

    def move(self, running: dict[int, Task], outcomes: dict[int, Outcome]) -> None:
        """Go on to how far all are now: back, where a model is begun again."""
        done, layer = self._sum(running, outcomes)
        if done != self._done:
            self._progress.advance(layer, done - self._done)
        self._done = done

    def _sum(self, running: dict[int, Task], outcomes: dict[int, Outcome]) -> tuple[int, str]:
        reached = {n: task.reached() for n, task in running.items()}
        shares = sum(int(r.share * self._sizes[n]) for n, r in reached.items())
        layer = next((r.layer for r in reached.values() if r.layer), "")
        return sum(self._sizes[n] for n in outcomes) + shares, layer
