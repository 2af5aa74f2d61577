"""The knapsack against every choice there is."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert_to_quant.converter.budget import knapsack
from convert_to_quant.converter.budget.knapsack import Option, best_choice, least_bytes

SIZES = st.one_of(st.integers(1, 40), st.sampled_from([9_000, 12_000, 18_432]))
ERRORS = st.one_of(st.floats(0, 100, width=32), st.sampled_from([0.0, 1e-9, 5.2e-5, 5.3e-5]))
ITEMS = st.lists(st.lists(st.builds(Option, SIZES, ERRORS), min_size=1, max_size=4), min_size=1, max_size=6)

MORE = st.one_of(st.integers(0, 200), st.integers(0, 40_000))


def by_hand(items, budget):
    sums = ((sum(o.bytes for o in c), sum(o.error for o in c)) for c in product(*items))
    return min(error for size, error in sums if size <= budget)


@given(ITEMS, MORE)
def test_the_optimum_of_small_problems(items, more):
    budget = least_bytes(items) + more
    got = best_choice(items, budget)
    assert got.bytes == sum(o[t].bytes for o, t in zip(items, got.taken, strict=True)) <= budget
    assert got.error == pytest.approx(by_hand(items, budget), abs=1e-9, rel=1e-9)
    assert got.gap == 0


@given(ITEMS, MORE)
def test_the_bound_holds_where_the_search_is_cut_short(items, more):
    budget, most = least_bytes(items) + more, knapsack.MOST_STATES
    knapsack.MOST_STATES = 2
    try:
        got = best_choice(items, budget)
    finally:
        knapsack.MOST_STATES = most
    optimum = by_hand(items, budget)
    assert got.bytes <= budget
    assert got.bound <= optimum + 1e-9 <= got.error + 2e-9


def test_two_thousand_layers():
    """As large models have them: few shapes, each layer with its own sensitivity."""
    random = np.random.default_rng(0)
    items = []
    for _ in range(2000):
        weights = int(random.choice([3072 * 3072, 3072 * 12288, 4096 * 4096]))
        error = float(random.lognormal(0, 1.5))
        items.append(
            [Option(int(weights * size), error * 10 ** (-db / 10)) for size, db in
             ((0.5, 25), (0.5625, 28.6), (0.8125, 38.2), (1.0, 42.8))]
        )  # fmt: skip
    least = least_bytes(items)
    got = best_choice(items, int(least * 1.4))
    assert least < got.bytes <= int(least * 1.4)
    assert got.gap < 1e-4
    assert got == best_choice(items, int(least * 1.4))


def test_a_budget_for_all_takes_the_best_of_each():
    items = [[Option(1, 5.0), Option(9, 1.0), Option(4, 1.0)], [Option(2, 0.0), Option(8, 0.0)]]
    got = best_choice(items, 10**9)
    assert (got.taken, got.bytes, got.error, got.bound) == ((2, 0), 6, 1.0, 1.0)


def test_nothing_fits():
    with pytest.raises(ValueError, match=r"even the smallest options take 7 bytes, 2 too many"):
        best_choice([[Option(7, 1.0)]], 5)


def test_no_items():
    assert best_choice([], 5).taken == ()
