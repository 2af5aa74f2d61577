"""A verification from start to end: a quantized file against the original it was made from."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ...files.checkpoint import Checkpoint, open_checkpoint
from ...files.memory import return_freed_buffers
from ...folding.factors import Folds
from ...formats import Format
from ...formats.algorithms import ROUNDING
from ...formats.errors import ConversionError
from ...formats.names import INPUT_SCALE
from ...quant.calibration import CalibrationData
from ..fold.stats import folded_stats
from ..plan.naming import named_as
from ..progress import Progress, Silent
from ..quantize.check import REFUSE_DB
from ..stored.faults import examine_file
from ..stored.judge import Examined, Problem
from ..stored.layers import StoredFile, StoredLayer, stored_file
from ..stored.record import Entry, Record, read_record
from .beside import broken_scales, scale_faults
from .columns import moved, stretched
from .folds import stored_folds
from .honest import faults, nearest
from .kept import as_written, changed
from .pairs import Pairs, pair
from .quality import diagnose, fits, measure
from .report import VerifiedLayer, VerifyReport, family_of
from .weights import Quantized, Source

_MAX_INPUTS = 512
"""Tokens of a calibration record that are used: they are a random sample already."""

_FITS_DB = 15.0
_MAX_CANDIDATES = 64


def verify(
    original: str | Path,
    quantized: str | Path,
    activations: str | Path | None = None,
    threshold: float = REFUSE_DB,
    progress: Progress | None = None,
) -> VerifyReport:
    """Compare a quantized file with its original.

    Every quantized layer is dequantized as the file describes it and compared over all rows; every other
    tensor byte for byte; the file is checked against ComfyUI's contract. activations: a calibration file; its
    samples give the SQNR of layer outputs. threshold: dB of weight SQNR below which a layer fails.
    ConversionError when a file cannot be read, or nothing in the two belongs together.
    """
    started = time.perf_counter()
    return_freed_buffers()
    with open_checkpoint(original) as source, open_checkpoint(quantized) as after:
        before = named_as(source, after)
        stored = stored_file(after)
        examined, problems = examine_file(stored)
        record, folds = read_record(after.metadata), stored_folds(before, after)
        pairs = pair(before, stored, examined, record)
        if not pairs.layers and not pairs.kept:
            raise ConversionError(
                f"{after.path} and {before.path} have no tensor in common; are they one model?"
            )
        inputs = _Inputs.open(activations, list(pairs.layers), folds)
        run = _Run(before, stored, examined, pairs, inputs, record, threshold, progress or Silent(), folds)
        layers, moved, unchanged = run.execute()
        return VerifyReport(
            original=str(before.path),
            quantized=str(after.path),
            threshold=threshold,
            layers=layers,
            problems=(*problems, *pairs.problems, *moved),
            unchanged=unchanged,
            removed=len(pairs.removed),
            bytes_before=before.nbytes,
            bytes_after=after.nbytes,
            seconds=time.perf_counter() - started,
            activations=None if activations is None else str(activations),
            notes=tuple(_notes(pairs, inputs, layers, run.unexplained, folds)),
        )


class _Inputs:
    """Recorded inputs by layer."""

    def __init__(self, data: CalibrationData | None, found: dict[str, str], folds: Folds | None):
        self._data, self.found, self._folds = data, found, folds

    @classmethod
    def open(cls, path: str | Path | None, layers: list[str], folds: Folds | None) -> "_Inputs":
        if path is None:
            return cls(None, {}, folds)
        try:
            data = CalibrationData.load(path)
            return cls(data, data.match(layers)[0], folds)
        except (OSError, ValueError) as e:
            raise ConversionError(f"--activations: {e}") from e

    @property
    def given(self) -> bool:
        return self._data is not None

    def of(self, layer: str, columns: int) -> torch.Tensor | None:
        """Return [n, K] inputs of a layer, None where none were recorded; ConversionError for another K."""
        if self._data is None or layer not in self.found:
            return None
        stats = folded_stats(self._folds, layer, self._data.stats(self.found[layer]))
        samples = stats.samples if stats is not None else None
        if samples is None or not len(samples):
            return None
        if samples.shape[-1] != columns:
            raise ConversionError(
                f"--activations: {self.found[layer]} has {samples.shape[-1]} columns, "
                f"the layer {columns}; record it with this model"
            )
        return samples[:_MAX_INPUTS]


class _Run:
    """The comparison of all pairs of two files."""

    def __init__(
        self,
        original: Checkpoint,
        stored: StoredFile,
        examined: dict[str, Examined],
        pairs: Pairs,
        inputs: _Inputs,
        record: Record | None,
        threshold: float,
        progress: Progress,
        folds: Folds | None,
    ):
        self._original, self._stored, self._examined = original, stored, examined
        self._pairs, self._inputs, self._record = pairs, inputs, record
        self.unexplained: list[str] = []
        self._threshold, self._progress, self._folds = threshold, progress, folds

    def execute(self) -> tuple[tuple[VerifiedLayer, ...], list[Problem], int]:
        """Compare; return the layers' results, problems with kept tensors, and how many are unchanged."""
        tensors = self._original.tensors
        sources = [*self._pairs.layers.values(), *self._pairs.kept.values()]
        self._progress.start(sum(tensors[n].nbytes for n in sources), 0)
        try:
            results = []
            for name, source in self._pairs.layers.items():
                results.append(self._layer(self._stored.layers[name], source))
                self._progress.advance(name, tensors[source].nbytes)
            problems = list(self._kept())
        finally:
            self._progress.stop()
        return tuple(results), problems, len(self._pairs.kept) - len(problems)

    def _kept(self) -> Iterator[Problem]:
        for name, source in self._pairs.kept.items():
            after = self._stored.checkpoint
            problem = changed(self._original, source, after, name, self._record, self._folds)
            self._progress.advance(name, self._original.tensors[source].nbytes)
            if problem:
                yield problem

    def _layer(self, layer: StoredLayer, source_name: str) -> VerifiedLayer:
        info = self._original.tensors[source_name]
        size = layer.weight.nbytes + sum(t.nbytes for t in layer.companions())
        examined = self._examined[layer.name]
        form = examined.format
        known = form.describe() if form else str((examined.config or {}).get("format", layer.weight.dtype))
        fields = (
            layer.name,
            family_of(layer.name),
            known,
            form.logical(layer.weight.shape) if form else layer.weight.shape,
            info.nbytes,
            size,
        )
        try:
            source = Source.of(self._original, source_name, self._folds, layer.weight.name)
            quantized = Quantized.of(self._stored.checkpoint, examined)
        except ConversionError as e:
            return VerifiedLayer(*fields, fault=str(e))
        if broken := broken_scales(quantized):
            return VerifiedLayer(*fields, fault=broken)
        inputs = self._inputs.of(layer.name, quantized.shape[1])
        quality, rows = measure(source, quantized, inputs, self._folds)
        entry = self._record.layer(layer.name) if self._record else None
        written = self._written(layer, form, entry) or scale_faults(quantized)
        rounded = self._rounded(entry)
        found, fault = faults(rows, rounded), ""
        if entry is not None and not written and _feeds_back_anywhere(form, entry):
            found = []
        elif not found and entry is None:
            found = [text for text in (moved(source, quantized, rows), stretched(quantized, rows)) if text]
        merged = entry is not None and entry.merged and not written  # the original is without the LoRAs
        if not merged and (found or not quality.weight_db >= self._threshold):
            fault = self._why(source, quantized, source_name, quality.weight_db, found)
        fault = "; ".join(filter(None, (written, fault)))
        if not fault and entry is None and not rounded and not nearest(rows):
            self.unexplained.append(layer.name)
        told = entry.what if entry else ""
        static = INPUT_SCALE in layer.tensors
        return VerifiedLayer(
            *fields, quality.weight_db, quality.w8a8_db, quality.w8a16_db, fault, told, static
        )

    def _rounded(self, entry: Entry | None) -> bool | None:
        """Tell what the record says of a layer's rounding: to nearest, otherwise, or nothing (None)."""
        if entry is not None:
            return None if entry.algorithm == ROUNDING else False
        return True if self._record is not None and self._record.complete else None

    def _written(self, layer: StoredLayer, form: Format | None, entry: Entry | None) -> str:
        """Say how a layer is not what the file's record says that was written; "" where it is."""
        if self._record is None:
            return ""
        if entry is None:
            there = form.extra if form and self._record.complete else ()
            extra = [s for s in there if s in layer.tensors]
        else:
            extra = [s for s, t in layer.tensors.items() if t.name not in entry.tensors]
        if extra:
            return f"it has {extra[0]}, of which the file's record says nothing"
        if entry is None:
            return ""
        if not as_written(self._stored.checkpoint, entry.tensors, entry.digest):
            return f"its bytes are not those that were written ({entry.what})"
        return ""

    def _why(
        self, source: Source, quantized: Quantized, source_name: str, weight_db: float, found: list[str]
    ) -> str:
        """Say what is wrong with a layer that fails."""
        if told := diagnose(source, quantized):
            return told
        if not weight_db >= REFUSE_DB:
            if other := self._belongs_to(quantized, source_name):
                return f"its integers are those of {other}"
            found = ["its integers do not fit the original", *found]
        return "; ".join(found) or f"below {self._threshold:g} dB"

    def _belongs_to(self, quantized: Quantized, source_name: str) -> str:
        """Name the original weight of this shape that some integers were made from, "" when none is near."""
        shape = self._original.tensors[source_name].shape
        alike = [n for n in self._pairs.layers.values() if self._original.tensors[n].shape == shape]
        for layer, name in self._pairs.layers.items():
            if name not in alike[:_MAX_CANDIDATES] or name == source_name:
                continue
            source = Source.of(self._original, name, self._folds, f"{layer}.weight")
            if fits(source, quantized) > _FITS_DB:
                return name
        return ""


def _feeds_back_anywhere(form: Format | None, entry: Entry) -> bool:
    """Tell a layer of which feedback may leave any row far from the original: one that is not rotated.

    A column of weak inputs beside one of 50 times stronger ones takes over its rounding errors: rows of FP8
    end at 700 times the least error, and their outputs are the better for it. Its digest tells what changed
    since it was written, and its threshold whether it is of this original.
    """
    return form is not None and not form.rotation and entry.algorithm not in (ROUNDING, "")


def _notes(
    pairs: Pairs,
    inputs: _Inputs,
    layers: Sequence[VerifiedLayer],
    unexplained: Sequence[str],
    folds: Folds | None,
) -> Iterator[str]:
    if folds is not None:
        yield (
            f"{len(folds.inputs)} inputs are folded: compared with the original's {len(folds.tensors)} "
            "tensors after the same folds"
        )
    if pairs.removed:
        yield f"{len(pairs.removed)} tensors are left out on purpose ({pairs.removed[0]}, ...)"
    for what, count in Counter(r.told for r in layers if r.told).items():
        compared = "" if "merged" not in what else ": as written; the original is without the LoRAs"
        yield f"{count} layers: {what}, as the file's record says{compared}"
    if unexplained:
        yield (
            f"{len(unexplained)} layers are not rounded to nearest ({unexplained[0]}, ...), and nothing in "
            "the file says how they were made: judged by what LDLQ and learned rounding leave"
        )
    static = [r.name for r in layers if r.static and not r.told]
    if static:
        yield (
            f"{len(static)} layers have an input_scale ({static[0]}, ...), which the original cannot "
            "confirm: only its range was looked at"
        )
    if inputs.given and len(inputs.found) < len(pairs.layers):
        without = next(n for n in pairs.layers if n not in inputs.found)
        yield f"{len(pairs.layers) - len(inputs.found)} layers have no recorded inputs ({without}, ...)"
