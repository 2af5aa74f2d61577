"""Editing: what is asked for changes and nothing else does; wrong names are refused with the nearest."""

import json
import subprocess
import sys

import pytest
import torch
from catalogs import REPOSITORY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import save_sharded
from quantized import LAYER, config, config_tensor, list_text, listed, load, make_pair, spoil
from safetensors.torch import save_file

from convert_to_quant import kernels
from convert_to_quant.converter.cli.main import main
from convert_to_quant.converter.edit.run import edit
from convert_to_quant.converter.edit.settings import EditSettings, parse_add, parse_remove
from convert_to_quant.files import writer
from convert_to_quant.formats.errors import ConversionError

LAYERS = [f"blocks.{b}.{n}" for b in range(2) for n in ("attn.qkv", "mlp.fc1", "mlp.fc2")]
META = "_quantization_metadata"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("edit"), {"keep": "me"}, save_quant_metadata=True)[1]


@pytest.fixture(scope="module")
def unlisted(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("edit"))[1]


def _edit(source, target, **options):
    return edit(EditSettings(str(source), str(target), **options))


def test_keys_are_set_and_removed_only_in_the_layers_selected(good, tmp_path):
    out = tmp_path / "out.safetensors"
    options = {"add_keys": {"full_precision_matrix_mult": True}, "remove_keys": ("convrot_groupsize",)}
    report = _edit(good, out, quant_filter=r"mlp\.fc1$", **options)
    tensors, metadata = load(out)
    for layer in LAYERS:
        expected = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256}
        if layer.endswith("fc1"):
            del expected["convrot_groupsize"]
            expected["full_precision_matrix_mult"] = True
        assert config(tensors, layer) == listed(metadata)[layer] == expected
    assert {c.where for c in report.changes} == {"blocks.0.mlp.fc1", "blocks.1.mlp.fc1"}
    before = load(good)[0]
    for name, tensor in tensors.items():
        assert name.endswith(".comfy_quant") or torch.equal(tensor, before[name])
    assert metadata["keep"] == "me"


def test_a_key_removed_and_added_is_replaced(good, tmp_path):
    options = {"remove_keys": ("convrot_groupsize",), "add_keys": {"convrot_groupsize": 64}}
    _edit(good, tmp_path / "out.safetensors", **options)
    assert config(load(tmp_path / "out.safetensors")[0])["convrot_groupsize"] == 64


def test_tensors_are_removed_by_exact_name(good, tmp_path):
    _edit(good, tmp_path / "out.safetensors", remove_keys=("final_layer.weight", "x_embedder.bias"))
    gone = load(good)[0].keys() - load(tmp_path / "out.safetensors")[0].keys()
    assert gone == {"final_layer.weight", "x_embedder.bias"}


def test_a_quantized_weight_goes_with_all_that_belongs_to_it(good, tmp_path):
    _edit(good, tmp_path / "out.safetensors", remove_keys=(f"{LAYER}.weight",))
    tensors, metadata = load(tmp_path / "out.safetensors")
    assert {f"{LAYER}.weight", f"{LAYER}.weight_scale", f"{LAYER}.comfy_quant"}.isdisjoint(tensors)
    assert f"{LAYER}.bias" in tensors
    assert LAYER not in listed(metadata)


def test_a_header_list_appears_only_when_there_was_one_or_it_is_asked_for(good, unlisted, tmp_path):
    _edit(unlisted, tmp_path / "a.safetensors", add_keys={"note": 1})
    assert META not in load(tmp_path / "a.safetensors")[1]
    _edit(unlisted, tmp_path / "b.safetensors", save_quant_metadata=True)
    tensors, metadata = load(tmp_path / "b.safetensors")
    assert listed(metadata) == {layer: config(tensors, layer) for layer in LAYERS}
    assert json.loads(metadata[META])["format_version"] == "1.0"


REFUSED = {
    "unknown key": ({"remove_keys": ("convrt",)}, "did you mean 'convrot'"),
    "unknown tensor": ({"remove_keys": ("final_layer.weigth",)}, "did you mean 'final_layer.weight'"),
    "key only elsewhere": (
        {"remove_keys": ("full_precision_matrix_mult",), "quant_filter": "fc1"},
        "nor a key in the comfy_quant of the layers selected",
    ),
    "filter that matches nothing": (
        {"quant_filter": r"blocks\.7\.mlp\.fc1", "add_keys": {"a": 1}},
        r"did you mean 'blocks\.\d\.mlp\.fc1'",
    ),
    "filter alone that matches nothing": ({"quant_filter": "nothing_like_it"}, "matches none of 6 layers"),
    "bad expression": ({"quant_filter": "(", "add_keys": {"a": 1}}, "not a regular expression"),
    "scale without its weight": ({"remove_keys": (f"{LAYER}.weight_scale",)}, "cannot be read without it"),
    "format removed": ({"remove_keys": ("format",)}, "no 'format'"),
    "format that does not fit": ({"add_keys": {"format": "int8_blockwise"}}, "does not fit its tensors"),
    "group that does not divide": (
        {"add_keys": {"convrot_groupsize": 1024}},
        "does not divide its 256 columns",
    ),
    "group that is none": ({"add_keys": {"convrot_groupsize": 100}}, "is not one of 4, 16, 64, 256, 1024"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_an_edit_that_cannot_be_meant_is_refused_and_writes_nothing(good, tmp_path, options, message):
    with pytest.raises(ConversionError, match=message):
        _edit(good, tmp_path / "out.safetensors", **options)
    assert not list(tmp_path.iterdir())


def test_the_block_edge_of_a_scale_stays(tmp_path):
    blockwise = make_pair(tmp_path, scaling_mode="block")[1]
    with pytest.raises(ConversionError, match="blocks of 128: group_size stays"):
        _edit(blockwise, tmp_path / "out.safetensors", add_keys={"group_size": 64})


def test_removing_everything_is_refused(good, tmp_path):
    names = tuple(load(good)[0])
    with pytest.raises(ConversionError, match="no tensor would be left"):
        _edit(good, tmp_path / "out.safetensors", remove_keys=names)


def test_adding_keys_to_a_file_without_quantized_layers_is_refused(tmp_path):
    save_file({"a.weight": torch.ones(4, 4)}, tmp_path / "plain.safetensors")
    with pytest.raises(ConversionError, match="no quantized layers"):
        _edit(tmp_path / "plain.safetensors", tmp_path / "out.safetensors", add_keys={"convrot": True})


def test_a_key_that_looks_mistyped_is_warned_of(good, tmp_path):
    report = _edit(good, tmp_path / "out.safetensors", add_keys={"convrot_group_size": 64})
    assert "did you mean 'convrot_groupsize'" in report.warnings[0]


@pytest.mark.parametrize("output", ["same", "link"])
def test_the_input_is_not_overwritten(good, tmp_path, output):
    source = tmp_path / "in.safetensors"
    source.write_bytes(good.read_bytes())
    target = source
    if output == "link":
        target = tmp_path / "link.safetensors"
        target.symlink_to(source)
    with pytest.raises(ConversionError, match="the output is the input"):
        _edit(source, target, add_keys={"a": 1})
    assert source.read_bytes() == good.read_bytes()


def test_an_interrupted_edit_leaves_no_output_and_is_gone_on_with(good, tmp_path, monkeypatch):
    out, real, copied = tmp_path / "out.safetensors", writer.OutputFile.copy, []

    def failing(self, name, *rest):
        if len(copied) == 7:
            raise KeyboardInterrupt
        copied.append(name)
        real(self, name, *rest)

    monkeypatch.setattr(writer.OutputFile, "copy", failing)
    with pytest.raises(KeyboardInterrupt):
        _edit(good, out, add_keys={"note": 1})
    assert not out.exists()
    again = []
    monkeypatch.setattr(writer.OutputFile, "copy", lambda s, n, *r: (again.append(n), real(s, n, *r))[1])
    _edit(good, out, add_keys={"note": 1})
    assert set(again).isdisjoint(copied)
    _edit(good, tmp_path / "whole.safetensors", add_keys={"note": 1})
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_a_sound_file_without_keys_is_copied_byte_for_byte(good, tmp_path):
    report = _edit(good, tmp_path / "out.safetensors")
    assert not report.changes
    assert "a copy" in report.summary()
    assert (tmp_path / "out.safetensors").read_bytes() == good.read_bytes()


def test_shards_become_one_edited_file(good, tmp_path):
    tensors, _ = load(good)
    index = save_sharded(tmp_path / "shards", tensors)
    _edit(index, tmp_path / "out.safetensors", add_keys={"note": 1})
    edited = load(tmp_path / "out.safetensors")[0]
    assert edited.keys() == tensors.keys()
    assert config(edited)["note"] == 1


def test_a_file_of_another_writer_keeps_its_spacing(good, tmp_path):
    def compact(tensors, metadata):
        for layer in LAYERS:
            text = json.dumps(config(tensors, layer), separators=(",", ":"))
            tensors[f"{layer}.comfy_quant"] = torch.tensor(list(text.encode()), dtype=torch.uint8)
        metadata[META] = json.dumps(json.loads(metadata[META]), separators=(",", ":"))

    source = spoil(good, tmp_path / "compact.safetensors", compact)
    _edit(source, tmp_path / "a.safetensors", add_keys={"note": [1, 2]})
    raw = bytes(load(tmp_path / "a.safetensors")[0][f"{LAYER}.comfy_quant"].tolist())
    assert raw.endswith(b',"note":[1,2]}')
    _edit(tmp_path / "a.safetensors", tmp_path / "b.safetensors", remove_keys=("note",))
    assert (tmp_path / "b.safetensors").read_bytes() == source.read_bytes()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
new_keys = st.text(st.characters(codec="utf-8", exclude_characters=","), min_size=1, max_size=12).filter(
    lambda k: k == k.strip() and k not in ("format", "convrot", "convrot_groupsize", "group_size", "params")
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=st.dictionaries(new_keys, json_values, min_size=1, max_size=3),
    pattern=st.sampled_from([None, "", "fc1", r"blocks\.1", "^blocks.0.attn.qkv$"]),
    with_list=st.booleans(),
)
def test_adding_keys_and_removing_them_gives_the_same_bytes(
    good, unlisted, tmp_path, keys, pattern, with_list
):
    source = good if with_list else unlisted
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    _edit(source, a, add_keys=keys, quant_filter=pattern, overwrite=True)
    edited = [layer for layer in LAYERS if keys.items() <= config(load(a)[0], layer).items()]
    assert edited
    _edit(a, b, remove_keys=tuple(keys), quant_filter=pattern, overwrite=True)
    assert b.read_bytes() == source.read_bytes()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_removing_tensors_leaves_all_others_as_they_are(unlisted, tmp_path, data):
    before = load(unlisted)[0]
    loose = sorted(n for n in before if not any(n.startswith(layer) for layer in LAYERS))
    names = data.draw(st.lists(st.sampled_from(loose), unique=True, max_size=len(loose)))
    _edit(unlisted, tmp_path / "out.safetensors", remove_keys=tuple(names), overwrite=True)
    after = load(tmp_path / "out.safetensors")[0]
    assert after.keys() == before.keys() - set(names)
    assert all(torch.equal(after[n], before[n]) for n in after)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1, "b": [true]}', {"a": 1, "b": [True]}),
        ('"convrot": true', {"convrot": True}),
        ("'convrot': true, 'convrot_groupsize': 256", {"convrot": True, "convrot_groupsize": 256}),
    ],
)
def test_added_keys_may_be_typed_with_less_ceremony(text, expected):
    assert parse_add(text) == expected


@pytest.mark.parametrize("text", ["", "{", "[1]", "convrot", "{'a': True}"])
def test_added_keys_that_are_no_json_object_are_refused(text):
    if text == "":
        assert parse_add(text) == {}
        return
    with pytest.raises(ValueError, match="a JSON object is expected"):
        parse_add(text)


def test_removed_keys_are_separated_by_commas():
    assert parse_remove(" a.b, c ,,a.b") == ("a.b", "c")


@pytest.mark.parametrize("door", ["edit", "--edit-quant"])
def test_both_doors_do_the_same(good, tmp_path, door, capsys):
    out = tmp_path / "out.safetensors"
    flags = ["--add-keys", '{"note": 1}', "--remove-keys", "convrot", "--quant-filter", "fc2"]
    flags += ["--save-quant-metadata", "--json", str(tmp_path / "r.json")]
    if door == "edit":
        argv = ["edit", str(good), "-o", str(out), *flags]
    else:
        argv = ["-i", str(good), "-o", str(out), "--edit-quant", *flags]
    assert main(argv) == 0
    assert config(load(out)[0], "blocks.0.mlp.fc2") == {
        "format": "int8_tensorwise",
        "convrot_groupsize": 256,
        "note": 1,
    }
    report = json.loads((tmp_path / "r.json").read_text())
    assert {c["kind"] for c in report["changes"]} == {"add key", "remove key"}
    assert "remove key x 2, add key x 2" in capsys.readouterr().out.replace("\n", " ")


def test_the_default_output_stands_beside_the_input(good, tmp_path):
    source = tmp_path / "in.safetensors"
    source.write_bytes(good.read_bytes())
    assert main(["edit", str(source)]) == 0
    assert (tmp_path / "in-edited.safetensors").exists()


def test_a_dry_run_lists_the_changes_and_writes_nothing(good, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    assert main(["edit", str(good), "-o", str(out), "--add-keys", '{"note": 1}', "--dry-run", "--all"]) == 0
    assert not out.exists()
    shown = capsys.readouterr().out
    assert "nothing written" in shown
    assert all(layer in shown for layer in LAYERS)


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["edit"], 2),
        (["edit", "a", "-i", "b"], 2),
        (["edit", "a", "--add-keys", "nonsense"], 2),
        (["edit", "a", "--unknown"], 2),
    ],
)
def test_a_wrong_command_line_exits_with_2(argv, code):
    with pytest.raises(SystemExit) as e:
        main(argv)
    assert e.value.code == code


def test_a_refused_edit_exits_with_1_and_one_line(good, tmp_path):
    command = [sys.executable, "-m", "convert_to_quant", "edit", str(good), "--remove-keys", "convrott"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 1
    assert done.stderr.startswith("error: --remove-keys convrott")
    assert "did you mean 'convrot'" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_inspection_and_edits_that_copy_do_without_torch(good, tmp_path):
    """torch takes seconds to load and 200 MiB: longer than editing a small file."""
    out = tmp_path / "out.safetensors"
    code = (
        "import sys; from convert_to_quant.converter.cli import compare, edit, inspect, main, verify; "
        "[m.parser().format_help() for m in (compare, edit, verify, inspect)]; "
        f"main.main(['inspect', {str(good)!r}]); "
        f"main.main(['edit', {str(good)!r}, '-o', {str(out)!r}, '--add-keys', '\"note\": 1']); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr


def test_faults_that_stay_are_said_on_stderr(good, tmp_path, capsys):
    def change(tensors, metadata):
        tensors[f"{LAYER}.comfy_quant"] = config_tensor({**config(tensors), "convrot_groupsize": 128})
        metadata[META] = list_text({**listed(metadata), LAYER: {**config(tensors)}})

    bad = spoil(good, tmp_path / "bad.safetensors", change)
    assert main(["edit", str(bad), "-o", str(tmp_path / "out.safetensors")]) == 0
    assert f"still wrong: {LAYER}: convrot_groupsize 128" in capsys.readouterr().err


def _floats(tensors, name, rotation=256):
    scale = tensors[f"{name}.weight_scale"]
    return kernels.dequantize(tensors[f"{name}.weight"], scale, torch.float32, rotation)


def test_layers_are_made_float_again(good, tmp_path):
    out = tmp_path / "out.safetensors"
    report = _edit(good, out, dequantize=r"mlp\.fc1$")
    before, (after, metadata) = load(good)[0], load(out)
    chosen = [n for n in LAYERS if n.endswith("fc1")]
    assert [(c.kind, c.where, c.text) for c in report.changes] == [
        ("dequantize", n, "I8 -> BF16") for n in chosen
    ]
    for name in chosen:
        assert torch.equal(after[f"{name}.weight"], _floats(before, name).bfloat16())
    gone = {f"{n}.{leaf}" for n in chosen for leaf in ("weight_scale", "comfy_quant")}
    assert before.keys() - after.keys() == gone
    assert list(listed(metadata)) == [n for n in LAYERS if n not in chosen]
    for name in after.keys() - {f"{n}.weight" for n in chosen}:
        assert torch.equal(after[name], before[name])
    assert main(["inspect", str(out)]) == 0


@pytest.mark.parametrize("scaling", ["tensor", "block"])
def test_every_kind_of_layer_can_be_made_float(scaling, tmp_path):
    original, quantized = make_pair(tmp_path, scaling_mode=scaling)
    _edit(quantized, tmp_path / "out.safetensors", dequantize=".")
    exact, found = load(original)[0], load(tmp_path / "out.safetensors")[0]
    assert found.keys() == exact.keys()
    for name in LAYERS:
        weight = exact[f"{name}.weight"].float()
        error = (found[f"{name}.weight"].float() - weight).norm() / weight.norm()
        assert error < 0.03


def test_a_smoothed_layer_becomes_the_weight_it_was(good, tmp_path):
    smooth = torch.rand(load(good)[0][f"{LAYER}.weight"].shape[1]) + 0.5

    def add(tensors, metadata):
        tensors[f"{LAYER}.pre_quant_scale"] = smooth

    file = spoil(good, tmp_path / "in.safetensors", add)
    _edit(file, tmp_path / "out.safetensors", dequantize=LAYER)
    found = load(tmp_path / "out.safetensors")[0]
    assert torch.equal(found[f"{LAYER}.weight"], (_floats(load(good)[0], LAYER) * smooth).bfloat16())
    assert f"{LAYER}.pre_quant_scale" not in found


def test_a_large_layer_is_made_float_in_pieces(tmp_path, monkeypatch):
    weight = torch.randn(20000, 256)
    q, scale = kernels.quantize_rowwise(weight, 64)
    conf = config_tensor({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 64})
    tensors = {
        "e.weight": q,
        "e.weight_scale": scale,
        "e.comfy_quant": conf,
        "n.weight": torch.ones(9).half(),
    }
    save_file(tensors, tmp_path / "in.safetensors")
    parts = []
    write = writer.OutputFile.write_part
    monkeypatch.setattr(
        writer.OutputFile, "write_part", lambda s, n, at, d: (parts.append(at), write(s, n, at, d))
    )
    report = _edit(tmp_path / "in.safetensors", tmp_path / "out.safetensors", dequantize="^e$")
    found = load(tmp_path / "out.safetensors")[0]
    assert len(parts) > 4
    assert torch.equal(found["e.weight"], kernels.dequantize(q, scale, torch.float32, 64).half())
    assert report.changes[0].text == "I8 -> F16"


def test_what_cannot_be_read_is_not_made_float(good, tmp_path):
    def drop(tensors, metadata):
        del tensors[f"{LAYER}.weight_scale"]

    broken = spoil(good, tmp_path / "broken.safetensors", drop)
    with pytest.raises(ConversionError, match=rf"--dequantize: {LAYER} cannot be read.*no weight_scale"):
        _edit(broken, tmp_path / "out.safetensors", dequantize=".")
    assert not (tmp_path / "out.safetensors").exists()
    with pytest.raises(ConversionError, match="--dequantize 'nope' matches none of 6 layers"):
        _edit(good, tmp_path / "out.safetensors", dequantize="nope")


def test_the_command_line_makes_an_embedding_float(tmp_path, capsys):
    q, scale = kernels.quantize_rowwise(torch.randn(512, 256), 256)
    conf = config_tensor({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256})
    name = "model.embed_tokens"
    file = tmp_path / "in.safetensors"
    save_file({f"{name}.weight": q, f"{name}.weight_scale": scale, f"{name}.comfy_quant": conf}, file)
    assert main(["inspect", str(file)]) == 0
    shown = capsys.readouterr().out
    assert f"ctq edit --dequantize '^{name}$'" in shown
    assert "note: " in shown
    out = tmp_path / "out.safetensors"
    assert main(["edit", str(file), "--dequantize", f"^{name}$", "-o", str(out)]) == 0
    found = load(out)[0]
    assert list(found) == [f"{name}.weight"]
    assert torch.equal(found[f"{name}.weight"], kernels.dequantize(q, scale, torch.bfloat16, 256))


def test_a_bank_of_experts_is_a_note(tmp_path, capsys):
    file = tmp_path / "in.safetensors"
    conf = config_tensor({"format": "int8_tensorwise", "num_experts": 4})
    q, scale = torch.ones(4, 8, 16, dtype=torch.int8), torch.ones(4, 8, 1)
    save_file({"e.weight": q, "e.weight_scale": scale, "e.comfy_quant": conf}, file)
    assert main(["inspect", str(file)]) == 0
    assert "note: e: a bank of 4 experts" in capsys.readouterr().out


NOISE = {
    "rotation off": (
        {"add_keys": {"convrot": False}},
        "was int8_tensorwise row + convrot 256, now int8_tensorwise row",
    ),
    "rotation lost": ({"remove_keys": ("convrot", "convrot_groupsize")}, "now int8_tensorwise row)"),
    "another group": ({"add_keys": {"convrot_groupsize": 16}}, "now int8_tensorwise row + convrot 16"),
}


@pytest.mark.parametrize(("asked", "text"), NOISE.values(), ids=NOISE.keys())
def test_an_edit_that_makes_noise_says_so(good, tmp_path, asked, text):
    report = edit(EditSettings(str(good), str(tmp_path / "noise.safetensors"), **asked))
    (warning,) = [w for w in report.warnings if "read as other weights than before" in w]
    assert "and 5 more" in warning
    assert text in warning


def test_an_edit_that_takes_a_smoothing_away_is_refused(good, tmp_path):
    def smooth(t, m):
        t[f"{LAYER}.pre_quant_scale"] = torch.ones(256)

    file = spoil(good, tmp_path / "smooth.safetensors", smooth)
    with pytest.raises(ConversionError, match=r"pre_quant_scale: .* cannot be read without it"):
        edit(EditSettings(str(file), str(tmp_path / "o.safetensors"), (f"{LAYER}.pre_quant_scale",)))


def test_a_key_that_changes_no_weight_is_no_noise(good, tmp_path):
    asked = {"add_keys": {"full_precision_matrix_mult": True, "note": 1}}
    assert not edit(EditSettings(str(good), str(tmp_path / "o.safetensors"), **asked)).warnings
