"""Which rows of a fused weight belong to which of diffusers' layers."""

import pytest

from convert_to_quant.names.rows import ALL_ROWS, SPLITS, Part, Row, under


def test_keys_and_values_with_fewer_heads_share_the_rest():
    """Lumina 2: 24 heads for q and 8 for k and v, 96 wide."""
    segments = [Part("qkv", place).segments(3840, 2304) for place in range(3)]
    assert segments == [((0, 0, 2304),), ((2304, 0, 768),), ((3072, 0, 768),)]


@pytest.mark.parametrize(
    ("how", "n", "k"),
    [("qkv", 9216, 3072), ("qkv", 3840, 2304), ("thirds", 21504, 5376), ("qkv+mlp", 21504, 3072)],
)
def test_the_parts_of_a_fused_weight_are_all_its_rows_once(how, n, k):
    parts = [Part(how, place).segments(n, k) for place in range(len(SPLITS[how](n, k)))]
    rows = [r for ((first, _, count),) in parts for r in range(first, first + count)]
    assert rows == list(range(n))
    assert all(start == 0 for ((_, start, _),) in parts)


def test_swapped_halves_trade_places():
    """The first half of the change goes to the second half of the weight."""
    change = list(range(8))
    weight = [None] * 8
    for first, start, count in Part("swap").segments(8, 3):
        weight[first : first + count] = change[start : start + count]
    assert weight == [4, 5, 6, 7, 0, 1, 2, 3]


def test_a_layer_that_is_whole_has_no_segments():
    assert ALL_ROWS.segments(8, 4) == ()


def test_names_below_two_modules():
    rows = under("a.{i}", "b.{i}", (("x", "y"), ("qkv", ("q", "k", "v"), "qkv"), Row("gone", ())))
    assert rows[0].targets == ("b.{i}.y",)
    assert rows[1] == Row("a.{i}.qkv", ("b.{i}.q", "b.{i}.k", "b.{i}.v"), "qkv")
    assert rows[2].targets == ()
