"""The layer configuration file: what it may hold, and how a mistake in it is told."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert_to_quant.converter.layers.config import LayerOverride, read_layer_config, write_layer_config
from convert_to_quant.formats.algorithms import ALGORITHMS
from convert_to_quant.formats.errors import ConversionError


def read(tmp_path, content):
    path = tmp_path / "layers.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_layer_config(path)


def test_every_field(tmp_path):
    entry = {
        "format": "int8_tensorwise",
        "scaling_mode": "axis",
        "block_size": 64,
        "convrot": True,
        "convrot_group_size": 64,
        "optimizer": "gptq",
        "skip": False,
        "full_precision_matrix_mult": True,
    }
    found = read(tmp_path, {"a": entry})["a"]
    assert found == LayerOverride("int8_tensorwise", "row", 64, True, 64, "ldlq", False, True)
    assert found.decides


@pytest.mark.parametrize(
    ("entry", "decides"),
    [
        ({}, False),
        ({"convrot": False}, False),
        ({"skip": True}, False),
        ({"skip": False}, True),
        ({"format": "fp16"}, True),
    ],
)
def test_only_a_format_or_skip_false_overrules_the_preset(tmp_path, entry, decides):
    assert read(tmp_path, {"a": entry})["a"].decides is decides


def test_order_is_kept(tmp_path):
    assert list(read(tmp_path, {"z": {}, "a": {}, "m": {}})) == ["z", "a", "m"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "an object of patterns is expected, not"),
        ('{"a": {}, "a": {"skip": true}}', "'a' stands twice"),
        ({"a": True}, "an object with settings is expected, not True"),
        ({"a": {"blocksize": 64}}, "'a': there is no field 'blocksize'; did you mean 'block_size'"),
        ({"a": {"scaling": "row"}}, "did you mean 'scaling_mode'"),
        ({"a": {"zzz": 1}}, "the names are: format, scaling_mode, block_size"),
        (
            {"a": {"format": "int8_tensor"}},
            "format: there is no format 'int8_tensor'; did you mean 'int8_tens",
        ),
        ({"a": {"format": "float8_e4m3"}}, "there is no format 'float8_e4m3'; did you mean 'float8_e4m3fn'?"),
        ({"a": {"format": 8}}, "format: must be a text, not 8"),
        ({"a": {"block_size": 100}}, "block_size: the block size must be a power of two"),
        ({"a": {"block_size": "64"}}, "block_size: must be a whole number, not '64'"),
        ({"a": {"block_size": True}}, "block_size: must be a whole number, not True"),
        ({"a": {"convrot_group_size": 32}}, "must be auto, 4, 16, 64, 256 or 1024, not 32"),
        ({"a": {"convrot_group_size": "64"}}, "must be a whole number or auto, not '64'"),
        ({"a": {"convrot": "yes"}}, "convrot: must be true or false, not 'yes'"),
        ({"a": {"skip": None}}, "skip: must be true or false, not None"),
        ({"a": {"optimizer": "ldql"}}, "there is no algorithm 'ldql'; did you mean 'ldlq'"),
        ({"a": {"optimizer": "rtn", "algorithm": "rtn"}}, "'optimizer' and 'algorithm' are one field"),
        ({"a": {"format": "int8_tensorwise", "scaling_mode": "block"}}, "for block use int8_blockwise"),
        ({"a": {"format": "int8_blockwise", "scaling_mode": "row"}}, "for row use int8_tensorwise"),
        ({"a": {"format": "int8_blockwise", "convrot": True}}, "int8_blockwise has no rotation"),
        ({"a": {"scaling_mode": "block", "convrot_group_size": 64}}, "int8_blockwise has no rotation"),
    ],
)
def test_mistakes_are_told_with_the_nearest_name(tmp_path, content, message):
    with pytest.raises(ConversionError, match=r"--layer-config .*layers\.json: ") as e:
        read(tmp_path, content)
    assert message in str(e.value)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ConversionError, match=r"none\.json: no such file"):
        read_layer_config(tmp_path / "none.json")


OVERRIDES = st.builds(
    LayerOverride,
    format=st.sampled_from([None, "int8", "fp16", "int8_tensorwise"]),
    scaling_mode=st.sampled_from([None, "row", "tensor"]),
    block_size=st.sampled_from([None, 16, 128, 1024]),
    convrot=st.sampled_from([None, True, False]),
    convrot_group_size=st.sampled_from([None, "auto", 4, 256]),
    optimizer=st.sampled_from([None, *ALGORITHMS]),
    skip=st.sampled_from([None, True, False]),
    full_precision_matrix_mult=st.sampled_from([None, True, False]),
)


@given(entries=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), OVERRIDES, max_size=5))
def test_what_is_written_reads_back_equal(tmp_path_factory, entries):
    path = tmp_path_factory.mktemp("config") / "c.json"
    path.write_text(write_layer_config(entries), encoding="utf-8")
    found = read_layer_config(path)
    assert found == entries
    assert list(found) == list(entries)
