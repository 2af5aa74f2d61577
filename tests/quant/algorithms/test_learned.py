"""Learned rounding: never above its start, below rounding on its own objective, and honest about it."""

import oracle
import pytest
import torch
from calibrated import damped, loss, tokens
from inputs import heavy
from options import options as options_of

from convert_to_quant.quant.algorithms import LayerStats, QuantizeOptions, learned, quantize_layer
from convert_to_quant.quant.grid import Grid

NAMES = ("original", "adamw", "radam")


def results(weight, stats, names, **options):
    return [quantize_layer(weight, stats, options_of(n, **options)) for n in names]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scaling", ["row", "tensor", "block"])
def test_below_ldlq_and_rounding_on_the_objective(name, scaling):
    weight, stats = heavy(60, 96), LayerStats(samples=tokens(500, 96))
    options = {"scaling": scaling, "block_size": 32, "steps": 30}
    best, ldlq, rtn = results(weight, stats, (name, "ldlq", "rtn"), **options)
    h = damped(stats)
    assert loss(weight, best, h) < loss(weight, ldlq, h) < loss(weight, rtn, h)
    assert "% off LDLQ's output error" in best.note


@pytest.mark.parametrize("name", NAMES)
def test_no_row_ends_above_its_start(name):
    weight, stats = heavy(60, 128), LayerStats(samples=tokens(300, 128))
    best, ldlq = results(weight, stats, (name, "ldlq"), rotation=64, steps=20)
    h = torch.from_numpy(damped(stats, 64))
    w = torch.from_numpy(oracle.rotate(oracle.array(weight), 64))
    rows = [
        learned.Problem(w, h, r.weight._layout_params["scale"].double(), Grid()).loss(
            r.weight._qdata.double()
        )
        for r in (best, ldlq)
    ]
    assert (rows[0] <= rows[1] * (1 + 1e-4)).all()


def test_says_so_when_nothing_is_better():
    """With an identity Hessian rounding is the optimum, and there is nothing left to learn."""
    weight, stats = heavy(20, 64), LayerStats(samples=torch.eye(64) * 8)
    best, rtn = results(weight, stats, ("adamw", "rtn"), steps=10)
    assert "found nothing better" in best.note
    assert torch.equal(best.weight._qdata, rtn.weight._qdata)


def test_without_calibration_it_says_what_it_optimised():
    weight = heavy(40, 64)
    (best,) = results(weight, None, ("original",), steps=10)
    assert best.note.startswith("no calibration samples: learned along the top singular directions")


def test_the_seed_repeats_the_result():
    weight = heavy(40, 64)
    one, two = results(weight, None, ("original", "original"), steps=10, seed=4)
    assert torch.equal(one.weight._qdata, two.weight._qdata)


def test_chunks_change_no_bit():
    weight, stats = heavy(1100, 24), LayerStats(samples=tokens(100, 24))
    whole = quantize_layer(weight, stats, QuantizeOptions("radam", steps=5))
    parts = quantize_layer(weight, stats, QuantizeOptions("radam", steps=5, row_chunk=1, in_place=True))
    assert torch.equal(whole.weight._qdata, parts.weight._qdata)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_schedules(schedule):
    weight, stats = heavy(20, 64), LayerStats(samples=tokens(100, 64))
    best, ldlq = results(weight, stats, ("adamw", "ldlq"), steps=10, schedule=schedule)
    assert loss(weight, best, damped(stats)) <= loss(weight, ldlq, damped(stats))
