"""Tokens that steer nothing: a part of every record that is large enough, the same each time."""

import pytest
import torch

from convert_to_quant.quant.algorithms import LayerStats
from convert_to_quant.quant.calibration.held_back import MOST, hold_back


@pytest.mark.parametrize(("recorded", "held"), [(15, 0), (16, 1), (1000, 62), (5000, MOST)])
def test_a_record_is_parted(recorded, held):
    samples = torch.arange(recorded).float().unsqueeze(1).expand(recorded, 3)
    stats, tokens = hold_back(LayerStats(samples, channel_max=torch.ones(3)))
    assert stats.samples.shape[0] == recorded - held
    assert torch.equal(stats.channel_max, torch.ones(3))
    kept = stats.samples[:, 0].tolist()
    assert kept == sorted(kept), "the rest is in its own order"
    assert (tokens is None) == (held == 0)
    rows = [] if tokens is None else tokens[:, 0].tolist()
    assert sorted([*kept, *rows]) == list(range(recorded))
    if held > 1:
        assert max(rows) - min(rows) > recorded / 2, "from all over the record"
        assert torch.equal(tokens, hold_back(LayerStats(samples))[1])


def test_made_up_inputs_measure_nothing():
    stats = LayerStats(torch.zeros(100, 3), synthetic=True)
    assert hold_back(stats) == (stats, None)
    assert hold_back(None) == (None, None)
    assert hold_back(LayerStats(channel_max=torch.ones(3)))[1] is None
