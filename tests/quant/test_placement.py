"""Where each layer computes: decided from shapes and a budget, whole where it fits, smaller where not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert_to_quant.formats.algorithms import ALGORITHMS
from convert_to_quant.quant.algorithms import QuantizeOptions
from convert_to_quant.quant.placement import device_budget, place

GIB = 2**30
SQUARE = (3072, 3072)


@pytest.mark.parametrize("algorithm", ["rtn", "quip", "adamw"])
def test_a_layer_that_fits_is_whole_on_the_device(algorithm):
    placed = place(SQUARE, algorithm, 8 * GIB)
    assert (placed.kind, placed.row_chunk, placed.in_place) == ("device", None, False)
    assert placed.bytes <= 8 * GIB


def test_a_smaller_budget_first_factors_in_place_then_cuts_rows_then_leaves_the_device():
    need = ALGORITHMS["quip"].memory(SQUARE)
    budgets = [need, need - 1, need // 2, need // 4, need // 8, need // 16]
    placed = [place(SQUARE, "quip", b) for b in budgets]
    kinds = [(p.kind, p.in_place) for p in placed]
    assert kinds[:2] == [("device", False), ("device", True)]
    assert kinds[-1] == ("cpu", False)
    assert ("chunks", True) in kinds


@pytest.mark.parametrize("budget", [None, 80 * GIB], ids=["no limit", "80 GiB"])
def test_wide_layers_are_checkpointed_whatever_the_budget(budget):
    placed = place((4096, 16384), "quip", budget)
    assert (placed.kind, placed.row_chunk, placed.in_place) == ("chunks", 1024, True)
    assert place((4096, 16384), "quip", budget, checkpointed=False).kind == "device"
    assert place((4096, 16384), "quip", budget, segments=2).row_chunk == 2048
    assert place((4096, 4096), "quip", budget, threshold=4096).in_place


def test_no_device_means_the_cpu_in_small_chunks():
    placed = place((12288, 3072), "quip", 0)
    assert (placed.kind, placed.row_chunk) == ("cpu", 1024)
    assert placed.options(QuantizeOptions("quip"), "cuda").device == "cpu"


def test_checkpointing_saves_three_quarters_of_the_estimate():
    memory = ALGORITHMS["quip"].memory
    whole, parts = memory((1024, 16384)), memory((1024, 16384), 256, True)
    assert parts < 0.27 * whole


@given(
    n=st.integers(1, 20000),
    k=st.integers(1, 20000),
    algorithm=st.sampled_from(["rtn", "quip", "ldlq", "radam"]),
    budget=st.integers(0, 64 * GIB),
)
def test_what_is_placed_on_the_device_fits(n, k, algorithm, budget):
    placed = place((n, k), algorithm, budget)
    assert placed.kind == "cpu" or placed.bytes <= budget
    assert placed.row_chunk is None or 1 <= placed.row_chunk <= max(n, 1024)
    assert placed.bytes == ALGORITHMS[algorithm].memory((n, k), placed.row_chunk, placed.in_place)


@pytest.mark.parametrize(
    ("mode", "want"),
    [("off", None), ("minimal", 850), ("balanced", 600), ("aggressive", 300), ("auto", 800)],
)
def test_budgets(mode, want):
    assert device_budget(mode, 1000) == want


def test_unknown_mode():
    with pytest.raises(ValueError, match="streaming mode must be off or one of"):
        device_budget("turbo", 1000)
