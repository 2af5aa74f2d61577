"""Tensors of the source that a conversion makes itself: no two of one name, none on the bytes of another."""

import hashlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import block_weights, layers, save
from safetensors.torch import load_file

from convert_to_quant.converter.verify.run import verify
from convert_to_quant.quantization import convert_to_int8, plan_int8

SUFFIXES = (
    "weight_scale",
    "comfy_quant",
    "input_scale",
    "pre_quant_scale",
    "scale_weight",
    "scale",
    "scale_input",
)


def left_overs(names: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    made = {}
    for layer, suffix in names:
        config = torch.tensor(list(b'{"format": "int8_tensorwise"}'), dtype=torch.uint8)
        made[f"{layer}.{suffix}"] = config if suffix == "comfy_quant" else torch.full((3, 1), 7.0)
    return made


@given(
    names=st.lists(
        st.tuples(st.sampled_from(layers()), st.sampled_from(SUFFIXES)), min_size=1, max_size=6, unique=True
    ),
    options=st.sampled_from([{}, {"scaling_mode": "block"}, {"save_quant_metadata": True}]),
)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_left_overs_change_nothing_but_a_note(tmp_path, names, options):
    clean = save(tmp_path / "clean.safetensors", block_weights())
    dirty = save(tmp_path / "dirty.safetensors", {**block_weights(), **left_overs(names)})
    wanted, got = tmp_path / "wanted.safetensors", tmp_path / "got.safetensors"
    convert_to_int8(clean, wanted, overwrite=True, **options)
    report = convert_to_int8(dirty, got, overwrite=True, **options)
    assert hashlib.sha256(got.read_bytes()).digest() == hashlib.sha256(wanted.read_bytes()).digest()
    assert any(f"{len(names)} tensors are dropped" in note for note in report.notes)
    assert verify(clean, got).ok


def test_beside_a_layer_that_is_kept_they_stay(tmp_path):
    extra = left_overs([("blocks.0.mlp.fc1", "scale")])
    model = save(tmp_path / "m.safetensors", {**block_weights(), **extra})
    convert_to_int8(model, tmp_path / "q.safetensors", exclude_layers=r"blocks\.0\.mlp\.fc1")
    assert torch.equal(
        load_file(tmp_path / "q.safetensors")["blocks.0.mlp.fc1.scale"], torch.full((3, 1), 7.0)
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_plan_names_each_output_once(tmp_path, suffix):
    model = save(tmp_path / "m.safetensors", {**block_weights(), **left_overs([(layers()[0], suffix)])})
    plan = plan_int8(model)
    assert [t.action for t in plan.tensors if t.name.endswith(f".{suffix}")].count("drop") == 1


def test_left_overs_are_nothing_that_a_verified_file_is_without(tmp_path):
    names = [(layers()[0], suffix) for suffix in SUFFIXES]
    dirty = save(tmp_path / "dirty.safetensors", {**block_weights(), **left_overs(names)})
    convert_to_int8(dirty, tmp_path / "out.safetensors")
    report = verify(dirty, tmp_path / "out.safetensors")
    assert report.ok
    assert not report.violations
