"""Tokens of a record that steer nothing, so that a layer's outputs can be measured on them."""

from dataclasses import replace

import torch

from ..algorithms.types import LayerStats

MOST = 256
"""Tokens held back at most. LDLQ has 3840 of 4096 then, which costs it 0.03 dB W8A16 (docs/quality.md)."""

SHARE = 16
"""One token in so many is held back of a smaller record."""


def hold_back(stats: LayerStats | None) -> tuple[LayerStats | None, torch.Tensor | None]:
    """Return the statistics without some of their tokens, and these: [n, K], None where none can be spared.

    They are drawn at random, the same for every call on the same record. Made-up inputs measure nothing, so
    none of them is held back.
    """
    if stats is None or stats.samples is None or stats.synthetic:
        return stats, None
    n = stats.samples.shape[0]
    held = min(MOST, n // SHARE)
    if not held:
        return stats, None
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n)).to(stats.samples.device)
    rest = order[held:].sort().values
    return replace(stats, samples=stats.samples[rest]), stats.samples[order[:held]]
