"""What a layer's error counts in the sum that a mix makes small."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .candidates import Candidate


@dataclass(frozen=True)
class Importance:
    """weights: of each layer's error. measured: layers whose influence on the model's output is known.

    Where any is, the sum is what the model's output is expected to lose (`calibration.influence`); where
    none is, the mean of the layers' own errors over all their weights.
    """

    weights: tuple[float, ...]
    measured: int


def importance(layers: Sequence[Candidate], influence: Mapping[str, float]) -> Importance:
    """Weigh layers by their influence on the model's output, one without by the median of the others'.

    influence: of layers by name. Without any, by their numbers of weights.
    """
    known = [influence[layer.name] for layer in layers if layer.name in influence]
    if known:
        other = statistics.median(known)
        return Importance(tuple(influence.get(layer.name, other) for layer in layers), len(known))
    counts = [layer.steps[0].source.numel for layer in layers]
    return Importance(tuple(count / sum(counts) for count in counts), 0)
