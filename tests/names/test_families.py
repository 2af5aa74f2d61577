"""The tables of names: every line is one that both of its users can read."""

import pytest

from convert_to_quant.names.families import CLASSES, FAMILIES
from convert_to_quant.names.rows import SPLITS

ROWS = [(family, row) for family, rows in FAMILIES.items() for row in rows]


@pytest.mark.parametrize(("family", "row"), ROWS, ids=lambda v: getattr(v, "ours", v))
def test_a_line_says_how_its_rows_are_dealt_out_and_numbers_both_sides_alike(family, row):
    if len(row.targets) > 1:
        assert len(SPLITS[row.how](9216, 1024)) == len(row.targets)
    else:
        assert row.how in ("", "swap", "swap pair")
    assert all(target.count("{i}") == row.ours.count("{i}") <= 1 for target in row.targets)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_names_each_layer_once(family):
    """The same layer twice on either side would be written twice, or be found in two places."""
    rows = FAMILIES[family]
    assert len({row.ours for row in rows}) == len(rows)
    targets = [target for row in rows for target in row.targets]
    assert len(set(targets)) == len(targets)


def test_a_class_has_the_table_of_a_family_or_the_checkpoints_own_names():
    assert all(rows == () or rows in FAMILIES.values() for rows in CLASSES.values())
