"""One format for all where a mix is not expected to be better by half a decibel."""

import pytest

from convert_to_quant.converter.budget.candidates import Candidate
from convert_to_quant.converter.budget.knapsack import Option, best_choice
from convert_to_quant.converter.budget.uniform import uniform_or

SMALL, MIDDLE, LARGE = Option(50, 30.0), Option(60, 10.0), Option(80, 9.0)
LAYERS = [Candidate(f"l{i}", ("small", "middle", "large"), ()) for i in range(4)]


def chosen(items, budget, layers=LAYERS):
    return uniform_or(best_choice(items, budget), layers, items, budget)


@pytest.mark.parametrize(("hardest", "taken"), [(4.0, (1, 1, 1, 1)), (100.0, (2, 0, 0, 1))])
def test_a_mix_must_gain_half_a_decibel(hardest, taken):
    """Four layers of the middle format fit; the first is the one that a mix would help."""
    hard = [Option(50, 3 * hardest), Option(60, hardest), Option(80, 0.1 * hardest)]
    items = [hard, *([[Option(50, 10.5), MIDDLE, LARGE]] * 3)]
    got = chosen(items, 240)
    assert got.taken == taken
    assert got.bytes <= 240
    assert got.error == pytest.approx(sum(o[t].error for o, t in zip(items, taken, strict=True)))


def test_a_layer_that_cannot_have_it_stays_as_chosen():
    layers = [*LAYERS[:3], Candidate("l3", ("large",), ())]
    got = chosen([[SMALL, MIDDLE, LARGE]] * 3 + [[LARGE]], 320, layers)
    assert got.taken == (2, 2, 2, 0)


def test_what_does_not_fit_is_not_taken():
    got = chosen([[SMALL, MIDDLE, LARGE]] * 4, 239)
    assert got.bytes <= 239
    assert got.taken.count(0) == 1
