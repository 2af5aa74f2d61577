"""A verification from start to end: a quantized file against the original it was made from."""

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from ...files.checkpoint import Checkpoint, open_checkpoint
from ...files.memory import return_freed_buffers
from ...formats.errors import ConversionError
from ...quant.calibration import CalibrationData
from ..convert.check import REFUSE_DB
from ..convert.progress import Progress, Silent
from ..stored.faults import examine_file
from ..stored.judge import Examined, Problem
from ..stored.layers import StoredFile, StoredLayer, stored_file
from .pairs import Pairs, changed, pair
from .quality import Quality, Quantized, Source, diagnose, fits, measure
from .report import VerifiedLayer, VerifyReport, family_of

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
    with open_checkpoint(original) as before, open_checkpoint(quantized) as after:
        stored = stored_file(after)
        examined, problems = examine_file(stored)
        pairs = pair(before, stored, examined)
        if not pairs.layers and not pairs.kept:
            raise ConversionError(
                f"{after.path} and {before.path} have no tensor in common; are they one model?"
            )
        inputs = _Inputs.open(activations, list(pairs.layers))
        run = _Run(before, stored, examined, pairs, inputs, threshold, progress or Silent())
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
            notes=tuple(_notes(pairs, inputs)),
        )


class _Inputs:
    """Recorded inputs by layer."""

    def __init__(self, data: CalibrationData | None, found: dict[str, str]):
        self._data, self.found = data, found

    @classmethod
    def open(cls, path: str | Path | None, layers: list[str]) -> "_Inputs":
        if path is None:
            return cls(None, {})
        try:
            data = CalibrationData.load(path)
            return cls(data, data.match(layers)[0])
        except (OSError, ValueError) as e:
            raise ConversionError(f"--activations: {e}") from e

    @property
    def given(self) -> bool:
        return self._data is not None

    def of(self, layer: str, columns: int) -> torch.Tensor | None:
        """Return [n, K] inputs of a layer, None where none were recorded; ConversionError for another K."""
        if self._data is None or layer not in self.found:
            return None
        samples = self._data.stats(self.found[layer]).samples
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
        threshold: float,
        progress: Progress,
    ):
        self._original, self._stored, self._examined = original, stored, examined
        self._pairs, self._inputs = pairs, inputs
        self._threshold, self._progress = threshold, progress

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
            problem = changed(self._original, source, self._stored.checkpoint, name)
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
            layer.weight.shape,
            info.nbytes,
            size,
        )
        try:
            source = Source.of(self._original, source_name)
            quantized = Quantized.of(self._stored.checkpoint, examined)
        except ConversionError as e:
            return VerifiedLayer(*fields, fault=str(e))
        quality = measure(source, quantized, self._inputs.of(layer.name, layer.weight.shape[1]))
        fault = ""
        if quality.scales_wrong or not quality.weight_db >= self._threshold:
            fault = self._why(source, quantized, source_name, quality)
        return VerifiedLayer(*fields, quality.weight_db, quality.w8a8_db, quality.w8a16_db, fault)

    def _why(self, source: Source, quantized: Quantized, source_name: str, quality: Quality) -> str:
        """Say what is wrong with a layer that fails."""
        if found := diagnose(source, quantized):
            return found
        if quality.scales_wrong:
            return f"the scales are not those of its rows (best scales: {quality.refit_db:.1f} dB)"
        if not quality.weight_db >= REFUSE_DB:
            other = self._belongs_to(quantized, source_name)
            return f"its integers are those of {other}" if other else "its integers do not fit the original"
        return f"below {self._threshold:g} dB"

    def _belongs_to(self, quantized: Quantized, source_name: str) -> str:
        """Name the original weight of this shape that some integers were made from, "" when none is near."""
        shape = self._original.tensors[source_name].shape
        alike = [n for n in self._pairs.layers.values() if self._original.tensors[n].shape == shape]
        for name in alike[:_MAX_CANDIDATES]:
            if name != source_name and fits(Source.of(self._original, name), quantized) > _FITS_DB:
                return name
        return ""


def _notes(pairs: Pairs, inputs: _Inputs) -> Iterator[str]:
    if pairs.removed:
        yield f"{len(pairs.removed)} tensors are left out on purpose ({pairs.removed[0]}, ...)"
    if inputs.given and len(inputs.found) < len(pairs.layers):
        without = next(n for n in pairs.layers if n not in inputs.found)
        yield f"{len(pairs.layers) - len(inputs.found)} layers have no recorded inputs ({without}, ...)"
