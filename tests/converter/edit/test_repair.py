"""Each breach of ComfyUI's contract, planted in a real file: found by name, and put right where it can be.

A repaired file must hold what the faultless one holds: the good file is the oracle.
"""

import json

import pytest
import torch
from quantized import LAYER, config, config_tensor, listed, load, make_pair, spoil

from convert_to_quant.converter.edit.run import edit
from convert_to_quant.converter.edit.settings import EditSettings
from convert_to_quant.converter.stored.inspect import inspect_file
from convert_to_quant.converter.verify.run import verify

META = "_quantization_metadata"
SCALE = f"{LAYER}.weight_scale"
CONFIG = f"{LAYER}.comfy_quant"


def _set(**values):
    """Keys of LAYER's comfy_quant; None removes one."""

    def change(tensors, metadata):
        new = {**config(tensors), **values}
        tensors[CONFIG] = config_tensor({k: v for k, v in new.items() if v is not None})

    return change


def _scale(convert):
    def change(tensors, metadata):
        tensors[SCALE] = convert(tensors[SCALE])

    return change


def _rename(new):
    def change(tensors, metadata):
        tensors[LAYER + new] = tensors.pop(SCALE)

    return change


def _header(alter):
    def change(tensors, metadata):
        header = json.loads(metadata[META])
        alter(header["layers"])
        metadata[META] = json.dumps(header)

    return change


def _strip_names(layers):
    old = dict(layers)
    layers.clear()
    layers.update({k.removeprefix("blocks."): v for k, v in old.items()})


def _nest(tensors, metadata):
    value = config(tensors)
    rotation = {k: value.pop(k) for k in ("convrot", "convrot_groupsize")}
    tensors[CONFIG] = config_tensor({**value, "params": rotation})


def _pad(tensors, metadata):
    tensors[CONFIG] = config_tensor(config(tensors), b"\0" * 9)


def _flat_bytes(tensors, metadata):
    tensors[CONFIG] = tensors[CONFIG].view(1, -1)


def _drop_config(tensors, metadata):
    del tensors[CONFIG]


def _stray_config(tensors, metadata):
    tensors["final_layer.comfy_quant"] = config_tensor({"format": "int8_tensorwise"})


REPAIRABLE = {
    "scale as (N,)": (_scale(lambda s: s.flatten()), "scale shape"),
    "scale as (1, N)": (_scale(lambda s: s.t()), "scale shape"),
    "scale as float64": (_scale(lambda s: s.double()), "scale dtype"),
    "scale as (N,) float64": (_scale(lambda s: s.flatten().double()), "scale dtype"),
    "scale named scale_weight": (_rename(".scale_weight"), "scale name"),
    "scale named scale": (_rename(".scale"), "scale name"),
    "NUL padding": (_pad, "NUL padding"),
    "comfy_quant as [1, n]": (_flat_bytes, "comfy_quant tensor"),
    "nested params": (_nest, "nested params"),
    "no format": (_set(format=None), "no format"),
    "group as a text": (_set(convrot_groupsize="256"), "rotation"),
    "labelled block-wise": (_set(format="int8_blockwise", group_size=128), "wrong format"),
    "labelled with an old name": (_set(format="int8_rowwise"), "wrong format"),
    "stray comfy_quant": (_stray_config, "stray comfy_quant"),
}

REPAIRABLE_HEADER = {
    "stripped names": (_header(_strip_names), "header name"),
    "an unquantized layer": (_header(lambda x: x.update({"final_layer": x[LAYER]})), "header name"),
    "an absent layer": (_header(lambda x: x.update({"blocks.9.mlp.fc1": x[LAYER]})), "header name"),
    "rotation lost in the header": (_header(lambda x: x[LAYER].pop("convrot")), "header differs"),
    "a text for an entry": (_header(lambda x: x.update({LAYER: "int8_tensorwise"})), "header entry"),
    "a layer not listed": (_header(lambda x: x.pop(LAYER)), "not listed"),
    "not JSON": (lambda t, m: m.update({META: "{"}), "header list"),
    "no layers": (lambda t, m: m.update({META: "{}"}), "header list"),
    "comfy_quant lost, header there": (_drop_config, "no comfy_quant"),
    "rotation lost in comfy_quant": (_set(convrot=None), "header differs"),
}

NOT_REPAIRABLE = {
    "scale missing": (lambda t, m: t.pop(SCALE), "scale missing"),
    "scale of half the rows": (_scale(lambda s: s[: len(s) // 2].clone()), "scale shape"),
    "scale as int32": (_scale(lambda s: s.to(torch.int32)), "scale dtype"),
    "group not a power of four": (_set(convrot_groupsize=128), "rotation"),
    "group that does not divide": (_set(convrot_groupsize=1024), "rotation"),
    "bias in int32": (lambda t, m: t.update({f"{LAYER}.bias": t[f"{LAYER}.bias"].int()}), "bias dtype"),
    "int8 that is no layer": (lambda t, m: t.update({"a.b": torch.ones(4, dtype=torch.int8)}), "INT8 tensor"),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def listed_pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("listed"), {"keep": "me"}, save_quant_metadata=True)


def _kinds(path):
    return {p.kind for p in inspect_file(path).problems}


def _check_repair(pair, tmp_path, change, kind):
    original, good = pair
    bad = spoil(good, tmp_path / "bad.safetensors", change)
    assert kind in _kinds(bad)
    assert kind in {p.kind for p in verify(original, bad).problems}
    report = edit(EditSettings(str(bad), str(tmp_path / "mended.safetensors")))
    assert any(c.kind == "repair" for c in report.changes)
    assert not report.left
    mended, metadata = load(tmp_path / "mended.safetensors")
    expected, expected_metadata = load(good)
    assert mended.keys() == expected.keys()
    for name, tensor in expected.items():
        if name.endswith(".comfy_quant"):
            layer = name.removesuffix(".comfy_quant")
            assert config(mended, layer) == config(expected, layer)
        else:
            assert torch.equal(mended[name], tensor), name
            assert mended[name].dtype == tensor.dtype
    assert metadata.keys() == expected_metadata.keys()
    if META in metadata:
        assert listed(metadata) == listed(expected_metadata)
    assert verify(original, tmp_path / "mended.safetensors").ok


@pytest.mark.parametrize(("change", "kind"), REPAIRABLE.values(), ids=REPAIRABLE.keys())
def test_a_fault_is_found_and_repaired(pair, tmp_path, change, kind):
    _check_repair(pair, tmp_path, change, kind)


@pytest.mark.parametrize(("change", "kind"), REPAIRABLE_HEADER.values(), ids=REPAIRABLE_HEADER.keys())
def test_a_fault_of_the_header_is_found_and_repaired(listed_pair, tmp_path, change, kind):
    _check_repair(listed_pair, tmp_path, change, kind)


@pytest.mark.parametrize(("change", "kind"), NOT_REPAIRABLE.values(), ids=NOT_REPAIRABLE.keys())
def test_a_fault_that_cannot_be_repaired_is_found_and_stays_listed(pair, tmp_path, change, kind):
    original, good = pair
    bad = spoil(good, tmp_path / "bad.safetensors", change)
    assert kind in _kinds(bad)
    assert not verify(original, bad).ok
    report = edit(EditSettings(str(bad), str(tmp_path / "same.safetensors")))
    assert kind in {p.kind for p in report.left}
    before, after = load(bad)[0], load(tmp_path / "same.safetensors")[0]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_a_sound_file_has_no_problems(pair, listed_pair):
    assert not inspect_file(pair[1]).problems
    assert not inspect_file(listed_pair[1]).problems


def test_every_fault_at_once_is_repaired(pair, tmp_path):
    def everything(tensors, metadata):
        for change in (_nest, _pad, _rename(".scale_weight")):
            change(tensors, metadata)
        tensors[f"{LAYER}.scale_weight"] = tensors[f"{LAYER}.scale_weight"].flatten().double()

    bad = spoil(pair[1], tmp_path / "bad.safetensors", everything)
    edit(EditSettings(str(bad), str(tmp_path / "mended.safetensors")))
    assert torch.equal(load(tmp_path / "mended.safetensors")[0][SCALE], load(pair[1])[0][SCALE])
    assert verify(pair[0], tmp_path / "mended.safetensors").ok


def test_a_bf16_scale_becomes_float32_of_the_same_value(pair, tmp_path):
    bad = spoil(pair[1], tmp_path / "bad.safetensors", _scale(lambda s: s.bfloat16()))
    edit(EditSettings(str(bad), str(tmp_path / "mended.safetensors")))
    scale = load(tmp_path / "mended.safetensors")[0][SCALE]
    assert scale.dtype == torch.float32
    assert torch.equal(scale, load(bad)[0][SCALE].float())


def test_a_missing_comfy_quant_is_written_without_rotation_and_that_is_said(pair, tmp_path):
    bad = spoil(pair[1], tmp_path / "bad.safetensors", _drop_config)
    report = edit(EditSettings(str(bad), str(tmp_path / "blind.safetensors")))
    assert config(load(tmp_path / "blind.safetensors")[0]) == {"format": "int8_tensorwise"}
    assert any("without rotation" in w for w in report.warnings)
    found = verify(pair[0], tmp_path / "blind.safetensors")
    assert "groups of 256 fits" in next(r.fault for r in found.layers if r.name == LAYER)


def test_a_missing_comfy_quant_takes_its_rotation_from_add_keys(pair, tmp_path):
    bad = spoil(pair[1], tmp_path / "bad.safetensors", _drop_config)
    keys = {"convrot": True, "convrot_groupsize": 256}
    mended = tmp_path / "mended.safetensors"
    report = edit(EditSettings(str(bad), str(mended), add_keys=keys, quant_filter=f"^{LAYER}$"))
    assert not report.warnings
    assert verify(pair[0], mended).ok
    assert torch.equal(load(mended)[0][CONFIG], load(pair[1])[0][CONFIG])


def test_a_group_that_does_not_fit_is_settled_by_add_keys(pair, tmp_path):
    bad = spoil(pair[1], tmp_path / "bad.safetensors", _set(convrot_groupsize=1024))
    settings = EditSettings(str(bad), str(tmp_path / "m.safetensors"), add_keys={"convrot_groupsize": 256})
    assert not edit(settings).left
    assert verify(pair[0], tmp_path / "m.safetensors").ok


@pytest.mark.parametrize(
    "wrong", [{"format": "int8_tensorwise"}, {"format": "int8_blockwise", "group_size": 64}]
)
def test_a_block_wise_layer_gets_its_label_and_edge_from_the_scale(tmp_path, wrong):
    original, good = make_pair(tmp_path, scaling_mode="block")
    bad = spoil(good, tmp_path / "bad.safetensors", lambda t, m: t.update({CONFIG: config_tensor(wrong)}))
    assert not verify(original, bad).ok
    edit(EditSettings(str(bad), str(tmp_path / "mended.safetensors")))
    assert config(load(tmp_path / "mended.safetensors")[0]) == {"format": "int8_blockwise", "group_size": 128}
    assert verify(original, tmp_path / "mended.safetensors").ok


def _old_float8(tensors, metadata):
    for name in [n for n in tensors if n.endswith("mlp.fc1.weight")]:
        layer = name.removesuffix(".weight")
        scale = tensors.pop(f"{layer}.weight_scale")[:1, 0].clone()
        del tensors[f"{layer}.comfy_quant"]
        tensors[name] = tensors[name].float().to(torch.float8_e4m3fn)
        tensors[f"{layer}.scale_weight"] = scale
    tensors["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)


def test_old_fp8_layers_come_along_so_that_a_header_does_not_orphan_them(pair, tmp_path):
    """With a header list ComfyUI no longer looks at scaled_fp8; its two elements mean full precision."""
    mixed = spoil(pair[1], tmp_path / "mixed.safetensors", _old_float8)
    assert not [p for p in inspect_file(mixed).problems if p.fatal]
    out = tmp_path / "out.safetensors"
    edit(EditSettings(str(mixed), str(out), save_quant_metadata=True))
    tensors, metadata = load(out)
    expected = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
    assert config(tensors, "blocks.0.mlp.fc1") == listed(metadata)["blocks.0.mlp.fc1"] == expected
    assert "scaled_fp8" not in tensors
    assert "blocks.1.mlp.fc1.weight_scale" in tensors
    assert not inspect_file(out).problems
