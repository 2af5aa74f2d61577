"""Which pattern decides for which layer, and what a pattern that fits none is answered."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert_to_quant.converter.layers.rules import layer_rules, nearest_layer
from convert_to_quant.converter.options.settings import Settings
from convert_to_quant.formats.errors import ConversionError

LAYERS = [
    "img_in",
    *(f"double_blocks.{i}.{a}" for i in range(12) for a in ("img_attn.qkv", "img_mlp.0", "txt_attn.proj")),
    *(f"single_blocks.{i}.linear{j}" for i in range(3) for j in (1, 2)),
    "final_layer.linear",
]


def rules(tmp_path, config=None, layers=LAYERS, **options):
    if config is not None:
        path = tmp_path / "c.json"
        path.write_text(json.dumps(config))
        options["layer_config"] = str(path)
    return layer_rules(Settings(input_file="x", **options), layers)


def test_without_patterns_nothing_is_decided(tmp_path):
    found = rules(tmp_path)
    assert not found.by_layer
    assert not found.notes


def test_configured_patterns_match_whole_names(tmp_path):
    found = rules(tmp_path, {r".*\.1\..*": {}})
    assert set(found.by_layer) == {n for n in LAYERS if ".1." in n}
    with pytest.raises(ConversionError, match="must match a whole layer name"):
        rules(tmp_path, {r"double_blocks\.1": {"skip": True}})


def test_flags_search(tmp_path):
    assert set(rules(tmp_path, exclude_layers="linear").by_layer) == {n for n in LAYERS if "linear" in n}
    assert set(rules(tmp_path, custom_layers=r"^img_in$").by_layer) == {"img_in"}


def test_excluded_before_custom_before_configured_and_the_first_configured_wins(tmp_path):
    found = rules(
        tmp_path,
        {
            r"single_blocks.*": {"block_size": 32},
            r"single.*|double_blocks\.0.*": {"block_size": 64},
            ".*": {},
        },
        exclude_layers="linear1",
        custom_layers=r"single_blocks\.0",
    )
    source = {name: (rule.source, rule.override.block_size) for name, rule in found.by_layer.items()}
    assert source["single_blocks.0.linear1"] == ("--exclude-layers", None)
    assert source["single_blocks.0.linear2"] == ("--custom-layers", None)
    assert source["single_blocks.1.linear2"] == ("--layer-config", 32)
    assert source["double_blocks.0.img_mlp.0"] == ("--layer-config", 64)
    assert source["img_in"] == ("--layer-config", None)


def test_a_pattern_behind_others_is_noted(tmp_path):
    found = rules(tmp_path, {".*": {}, r"img_in": {"skip": True}})
    assert (
        found.notes[-1]
        == "--layer-config 'img_in' changes nothing: earlier patterns decide for all its layers"
    )


@pytest.mark.parametrize("option", ["exclude_layers", "custom_layers"])
def test_a_bad_expression_is_told(tmp_path, option):
    flag = "--" + option.replace("_", "-")
    with pytest.raises(ConversionError, match=rf"{flag} '\(a': not a regular expression: .* at character 1"):
        rules(tmp_path, **{option: "(a"})
    with pytest.raises(ConversionError, match=r"--layer-config '\[': not a regular expression"):
        rules(tmp_path, {"[": {}})


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        (r"double_blocks\.3\.img_atn\.qkv", "double_blocks.3.img_attn.qkv"),
        (r"double_blocks\.\d+\.img_attn\.qvk", "double_blocks.0.img_attn.qkv"),
        (r"double_block\.7\.txt_attn\.proj", "double_blocks.7.txt_attn.proj"),
        (r"single_blocks\.[0-9]+\.linear3", "single_blocks.0.linear1"),
        (r"^final_layer\.linear\.weight$", "final_layer.linear"),
        (r"image_in", "img_in"),
    ],
)
def test_a_pattern_that_matches_nothing_names_the_nearest_layer(tmp_path, pattern, nearest):
    with pytest.raises(ConversionError, match="matches no layer") as e:
        rules(tmp_path, {pattern: {"skip": True}})
    assert f"the nearest is {nearest!r}" in str(e.value)
    assert f"the nearest is {nearest!r}" in str(_error(tmp_path, custom_layers=pattern + "x"))


def _error(tmp_path, **options):
    with pytest.raises(ConversionError) as e:
        rules(tmp_path, **options)
    return e.value


@pytest.mark.parametrize(
    "option", [{"custom_type": "int8"}, {"custom_simple": True}, {"custom_block_size": 64}]
)
def test_custom_options_need_custom_layers(tmp_path, option):
    flag = "--" + next(iter(option)).replace("_", "-")
    assert str(_error(tmp_path, **option)) == f"{flag} needs --custom-layers REGEX: the layers it is for"


def test_float16_takes_no_integer_options(tmp_path):
    error = _error(tmp_path, custom_layers="img_in", custom_type="fp16", custom_scaling_mode="row")
    assert "--custom-scaling-mode does not apply to --custom-type fp16" in str(error)


NAMES = st.lists(
    st.from_regex(r"\A[ab]{1,2}(\.([0-9]{1,2}|[ab]{1,2}|c_d)){0,3}\Z"), min_size=1, max_size=8, unique=True
)
PATTERNS = st.lists(
    st.sampled_from([r".*", r"a.*", r"[ab]+", r".*\.\d+", r"(a|b)\..*", r"a\.\d+\..*", r".*c_d", r"b+"]),
    max_size=4,
    unique=True,
)


@given(names=NAMES, patterns=PATTERNS)
def test_every_layer_gets_the_first_pattern_that_matches_it(tmp_path_factory, names, patterns):
    patterns = [p for p in patterns if any(re.fullmatch(p, n) for n in names)]
    path = tmp_path_factory.mktemp("rules")
    found = rules(path, {p: {"block_size": 64} for p in patterns}, names).by_layer
    for name in names:
        first = next((p for p in patterns if re.fullmatch(p, name)), None)
        assert (found[name].pattern if name in found else None) == first


@given(names=NAMES)
def test_an_escaped_name_is_that_layer_alone(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("rules")
    assert list(rules(path, {re.escape(names[0]): {}}, names).by_layer) == names[:1]


@given(names=NAMES, pattern=st.text(st.sampled_from("ab.0\\d+*[]()^$|?{}cz_-"), max_size=12))
def test_there_is_always_a_nearest_layer(names, pattern):
    assert nearest_layer(pattern, names) in names
    assert nearest_layer(pattern, []) == ""


@given(names=NAMES, index=st.integers(0, 7))
def test_the_nearest_of_a_name_is_itself(names, index):
    name = names[index % len(names)]
    assert nearest_layer(re.escape(name), names) == name
