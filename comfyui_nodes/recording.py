"""What calibration recorders have seen in this ComfyUI, by name and model.

A recorder is a wrapper around ComfyUI's call of the model: hooks are on while a model that came out of the
node runs, and at no other time. So they are gone with the node, and it does not matter which copy of the
model runs: ComfyUI frees it, and builds it anew, as it likes.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from convert_to_quant.quant.calibration import Recorder

from . import places

logger = logging.getLogger("convert_to_quant.nodes")

WRAPPER = "convert_to_quant.calibration"

_SHOWN = 3


@dataclass(frozen=True)
class Identity:
    """Which model a record belongs to: the file it was loaded from, where known, and its linear layers."""

    source: str
    layers: tuple[tuple[str, int, int], ...]


@dataclass
class Record:
    """What one model showed under one name.

    path: its file once it was saved. saved: how many tokens of all layers that file holds.
    """

    name: str
    identity: Identity
    recorder: Recorder
    path: Path | None = None
    saved: int = 0
    checked: bool = False

    @property
    def seen(self) -> int:
        """Return the tokens of all layers so far."""
        return sum(r.seen for r in self.recorder.records.values())

    def save(self) -> Path:
        """Write the record to its file, a new one the first time; return it. It only ever grows."""
        if self.path is None:
            self.path = places.new_file(f"{places.CALIBRATION}/{self.name}")
        if self.seen != self.saved or not self.path.is_file():
            self.recorder.save(self.path)
            self.saved = self.seen
        return self.path

    def summary(self) -> str:
        """Return one line: layers, tokens, what failed."""
        layers = len(self.recorder.records)
        most = max((r.seen for r in self.recorder.records.values()), default=0)
        line = f"{layers} inputs of {len(self.recorder.modules)} linear layers, up to {most} tokens each"
        failed = self.recorder.failed
        return line + (f"; {len(failed)} stopped ({some(failed)})" if failed else "")


class Records:
    """All records of this process, the latest last."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, Identity], Record] = {}
        self._stopped: set[str] = set()
        self._finished: dict[str, Path] = {}

    def stop(self, name: str) -> None:
        """Record nothing more under the name; what there is stays."""
        self._stopped.add(name)

    def go_on(self, name: str) -> None:
        """Record again."""
        self._stopped.discard(name)

    def stopped(self, name: str) -> bool:
        """Return whether recording was stopped."""
        return name in self._stopped

    def clear(self, name: str) -> int:
        """Forget the records of the name, and that it was stopped; return how many. Files stay."""
        mine = [key for key in self._records if key[0] == name]
        for key in mine:
            self._records.pop(key).recorder.detach()
        self._stopped.discard(name)
        return len(mine)

    def of(self, name: str) -> list[Record]:
        """Return the records of a name that have seen anything, the latest last."""
        return [r for r in self._records.values() if r.name == name and r.seen]

    def named(self) -> list[str]:
        """Return the names that have records."""
        return list(dict.fromkeys(r.name for r in self._records.values() if r.seen))

    def save(self, name: str, keep: bool) -> tuple[Path, list[str]]:
        """Write every record of the name, each to its own file; return the latest's, and a line on each.

        keep: whether later runs add to them; else the next run begins new ones. ValueError where nothing was
        recorded. A run without anything new gives the last file.
        """
        mine = self.of(name)
        if not mine and name in self._finished:
            path = self._finished[name]
            return path, [f"{places.below_output(path)}: nothing was recorded since"]
        if not mine:
            raise ValueError(
                f"nothing was recorded under the name {name!r}: put a calibration recorder of that name "
                "between the model's loader and the sampler, and this node after the sampler"
            )
        lines = []
        for record in mine:
            path = self._finished[name] = record.save()
            lines.append(f"{places.below_output(path)}: {record.summary()}")
        if not keep:
            for record in mine:
                del self._records[name, record.identity]
        return self._finished[name], lines

    def file_for(self, name: str, model: torch.nn.Module | None) -> Path | None:
        """Return the file, saved now, of what this name recorded: of a model with these layers first."""
        mine = self.of(name)
        if model is not None:
            layers = linear_layers(model)
            mine.sort(key=lambda r: r.identity.layers == layers)
        return mine[-1].save() if mine else self._finished.get(name)

    def record(self, name: str, identity: Identity, make: Callable[[], Recorder]) -> Record:
        """Return the record of a name and model, begun where there is none."""
        key = name, identity
        if key not in self._records:
            self._records[key] = Record(name, identity, make())
        return self._records[key]


RECORDS = Records()
"""The records of this process."""


@dataclass(frozen=True)
class Watcher:
    """A wrapper of ComfyUI's APPLY_MODEL: records what the model sees, and never touches what it makes."""

    name: str
    source: str
    tokens: int
    max_bytes: int

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the model with hooks on; without them where anything of the recording fails."""
        record = self._begin(executor)
        try:
            return executor(*args, **kwargs)
        finally:
            if record is not None:
                self._end(record)

    def _begin(self, executor: Any) -> Record | None:
        if RECORDS.stopped(self.name):
            return None
        try:
            model = executor.class_obj.diffusion_model
            identity = Identity(self.source, linear_layers(model))
            make = lambda: Recorder(model, tokens=self.tokens, max_bytes=self.max_bytes)
            record = RECORDS.record(self.name, identity, make)
            record.recorder.attach(model)
            return record
        except Exception as error:
            RECORDS.stop(self.name)
            logger.warning("recording of %s stopped: %s: %s", self.name, type(error).__name__, error)
            return None

    def _end(self, record: Record) -> None:
        recorder = record.recorder
        recorder.detach()
        if record.checked:
            return
        record.checked = True
        unseen = sorted(recorder.modules.keys() - recorder.owner.keys() - recorder.failed.keys())
        if unseen:
            logger.warning(
                "recording of %s: %d of %d linear layers did not run as modules (%s): the model calls their "
                "weights directly, or not at all; they are quantized without calibration",
                self.name,
                len(unseen),
                len(recorder.modules),
                some(unseen),
            )


def linear_layers(model: torch.nn.Module) -> tuple[tuple[str, int, int], ...]:
    """Return (name, in_features, out_features) of every linear layer of a model."""
    return tuple(
        (name, m.in_features, m.out_features)  # type: ignore[misc]
        for name, m in model.named_modules()
        if hasattr(m, "in_features") and hasattr(m, "out_features")
    )


def quantized_layers(model: torch.nn.Module) -> list[str]:
    """Return the linear layers whose weight is quantized."""
    weights = ((name, getattr(m, "weight", None)) for name, m in model.named_modules())
    return [name for name, weight in weights if hasattr(weight, "_qdata")]


def some(names: Any) -> str:
    """Return the first names of many."""
    shown = list(names)[:_SHOWN]
    return ", ".join(shown) + (", ..." if len(names) > _SHOWN else "")
