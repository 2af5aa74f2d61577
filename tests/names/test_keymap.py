"""Names of a checkpoint to names of a model, and back."""

import pytest

from convert_to_quant.names.families import FAMILIES
from convert_to_quant.names.keymap import IDENTITY, KeyMap, Mapped, map_for

RULES = (
    ("in", "embed"),
    ("blocks.{i}.qkv", tuple(f"layers.{{i}}.{n}" for n in "qkv")),
    ("blocks.{i}.norm.scale", "layers.{i}.norm.weight"),
    ("final", "out", "swap"),
    ("unused", ()),
)
"""Rules as a user writes them."""


@pytest.mark.parametrize(
    ("name", "mapped"),
    [
        ("in.weight", Mapped(("embed.weight",))),
        ("blocks.12.qkv.bias", Mapped(("layers.12.q.bias", "layers.12.k.bias", "layers.12.v.bias"))),
        ("blocks.0.norm.scale", Mapped(("layers.0.norm.weight",))),
        ("final.weight_scale", Mapped(("out.weight_scale",), how="swap")),
        ("unused.weight", Mapped(())),
        ("blocks.x.qkv.weight", Mapped(("blocks.x.qkv.weight",))),
        ("inner.weight", Mapped(("inner.weight",))),
    ],
)
def test_a_rule_renames_splits_swaps_or_drops_and_others_stay(name, mapped):
    assert KeyMap(RULES)(name) == mapped


def test_the_way_back_joins_in_order_of_the_rows_whatever_order_is_given():
    names = ["layers.3.v.weight", "out.bias", "layers.3.q.weight", "other", "layers.3.k.weight"]
    assert KeyMap(RULES).inverse(names) == {
        "blocks.3.qkv.weight": Mapped(("layers.3.q.weight", "layers.3.k.weight", "layers.3.v.weight")),
        "final.bias": Mapped(("out.bias",), how="swap"),
        "other": Mapped(("other",)),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back_is_the_same_name(family):
    """For every line of every table but those that only drop, and the second spelling of RMSNorms."""
    table, layers = KeyMap(FAMILIES[family]), {row.ours for row in FAMILIES[family]}
    for row in FAMILIES[family]:
        name = row.ours.replace("{i}", "7") + ("" if row.ours.endswith(".scale") else ".weight")
        mapped = table(name)
        if mapped.targets and f"{row.ours}.scale" not in layers:
            assert table.inverse(mapped.targets) == {name: mapped}


def test_a_model_has_the_table_of_its_class_or_of_a_base_class():
    base = type("ZImageTransformer2DModel", (), {})
    assert map_for(type("Mine", (base,), {})())("norm_final.weight") == Mapped(())
    assert map_for(object()) is IDENTITY
