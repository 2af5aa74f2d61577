"""One format for all layers, where a mix is not expected to be better by what such an estimate can tell."""

import math
from collections.abc import Sequence
from dataclasses import replace

from .candidates import Candidate
from .knapsack import Choice, Option

MARGIN = 10 ** (0.5 / 10)
"""A mix must have this many times less noise: half a decibel. On MiniLM mixes of the size of one format were
expected to gain 0.15 dB over it and lost 0.3 dB end to end."""


def uniform_or(
    choice: Choice, layers: Sequence[Candidate], items: Sequence[Sequence[Option]], budget: int
) -> Choice:
    """Return the choice of one format for all layers that can have it, if it is nearly as good as `choice`.

    Layers that cannot have the format stay as in `choice`, and its bound is kept.
    """
    found = choice
    least = math.inf
    for name in dict.fromkeys(name for layer in layers for name in layer.formats):
        taken = tuple(
            layer.formats.index(name) if name in layer.formats else t
            for layer, t in zip(layers, choice.taken, strict=True)
        )
        chosen = [options[t] for options, t in zip(items, taken, strict=True)]
        size, error = sum(o.bytes for o in chosen), sum(o.error for o in chosen)
        if size <= budget and error <= choice.error * MARGIN and error < least:
            found, least = replace(choice, taken=taken, bytes=size, error=error), error
    return found
