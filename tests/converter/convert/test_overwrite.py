"""What may stand where an output is to be: this command's own result, or nothing."""

import json
import os
from pathlib import Path

import pytest
import torch
from lora_files import low_rank, save_lora
from models import block_weights, save

from convert_to_quant.converter.cli.calibrate import main as calibrate_main
from convert_to_quant.converter.cli.main import main
from convert_to_quant.quantization import ConversionError, convert_to_int8, plan_int8

FC1 = "blocks.0.mlp.fc1"


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "m.safetensors", block_weights(), {"format": "pt"})


def run(capsys, *argv):
    """Run a command line: (exit code, stdout, the last line of stderr)."""
    code = main([str(a) for a in argv])
    out, errors = capsys.readouterr()
    return code, out, (errors.splitlines() or [""])[-1]


def state(path):
    return path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns


def test_the_same_command_again_says_already_there(tmp_path, model, capsys):
    output = tmp_path / "q.safetensors"
    assert run(capsys, "-i", model, "-o", output)[0] == 0
    before = state(output)
    for spelled in ([], ["--scaling-mode", "row"], ["--low-memory"], ["--convrot"], ["--report-quality"]):
        code, out, _ = run(capsys, "-i", model, "-o", output, *spelled)
        assert code == 0, spelled
        assert out.strip().endswith("already there, made before from the same files with the same options")
    report = convert_to_int8(model, output)
    assert report.already_there
    assert [r.name for r in report.layers] == [r.name for r in convert_to_int8(model, tmp_path / "r").layers]
    assert state(output) == before


@pytest.mark.parametrize("change", ["options", "model", "model, unseen", "version", "lora", "foreign", "cut"])
def test_another_result_is_refused_and_replaced_when_asked(tmp_path, model, capsys, monkeypatch, change):
    output, flags = tmp_path / "q.safetensors", []
    assert run(capsys, "-i", model, "-o", output)[0] == 0
    if change == "options":
        flags = ["--no-convrot"]
    elif change == "version":
        monkeypatch.setattr("convert_to_quant.converter.plan.inputs.VERSION", "9.9.9")
    elif change == "lora":
        lora = save_lora(tmp_path / "l.safetensors", low_rank(FC1, 512, 256)[0])
        flags = ["--merge-lora", str(lora)]
    elif change == "foreign":
        output.write_bytes(b"someone's file")
    elif change == "cut":
        os.truncate(output, output.stat().st_size - 1)
    else:
        save(model, block_weights(seed=5), {"format": "pt"})
        if change == "model, unseen":  # older than the output: its values tell
            os.utime(model, ns=(10**18, 10**18))
    before = state(output)
    code, out, error = run(capsys, "-i", model, "-o", output, *flags)
    assert (code, out) == (1, "")
    assert "exists, and it is" in error
    assert "--overwrite" in error
    assert state(output) == before
    assert not list(tmp_path.glob("*.part*"))
    assert run(capsys, "-i", model, "-o", output, *flags, "--overwrite")[0] == 0
    assert output.read_bytes() != before[0]
    assert "already there" in run(capsys, "-i", model, "-o", output, *flags)[1]


def test_one_changed_value_of_the_model_is_noticed_by_its_time(tmp_path, model):
    output = tmp_path / "q.safetensors"
    convert_to_int8(model, output)
    tensors = block_weights()
    tensors["blocks.0.mlp.fc1.weight"][100, 100] += 1
    os.utime(output, ns=(10**18, 10**18))
    save(model, tensors, {"format": "pt"})
    with pytest.raises(ConversionError, match="it is older than what it is made from"):
        convert_to_int8(model, output)


def test_a_file_that_comes_while_one_converts_is_not_replaced(tmp_path, model, monkeypatch):
    from convert_to_quant.files.writer import OutputFile

    output, finish = tmp_path / "q.safetensors", OutputFile.finish
    monkeypatch.setattr(OutputFile, "finish", lambda s: (output.write_bytes(b"theirs"), finish(s))[1])
    with pytest.raises(ConversionError, match="exists"):
        convert_to_int8(model, output)
    assert output.read_bytes() == b"theirs"


def test_a_run_stopped_between_its_two_names_is_finished(tmp_path, model):
    """The output has its name, the .part file still has its own: the same file twice."""
    output = tmp_path / "q.safetensors"
    convert_to_int8(model, output)
    os.link(output, tmp_path / "q.safetensors.part")
    (tmp_path / "q.safetensors.part.journal").write_bytes(b"whatever\n")
    assert convert_to_int8(model, output).already_there
    os.link(output, tmp_path / "q.safetensors.part")
    convert_to_int8(model, output, convrot=False, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors", "q.safetensors"]


def test_default_names_tell_what_differs(tmp_path, model, capsys):
    calibration = tmp_path / "c.safetensors"
    names, record = {}, tmp_path / "x.safetensors"
    tensors = {
        n.removesuffix(".weight"): torch.randn(64, w.shape[1])
        for n, w in block_weights().items()
        if w.dim() == 2
    }
    save(record, tensors)
    assert calibrate_main(["-i", str(model), "-o", str(calibration), "--activations", str(record)]) == 0
    style = save_lora(tmp_path / "style.safetensors", low_rank(FC1, 512, 256)[0])
    many = [
        save_lora(tmp_path / f"{'long' * 10}{i}.safetensors", low_rank(FC1, 512, 256)[0]) for i in range(3)
    ]
    options = {
        "plain": {},
        "unrotated": {"convrot": False},
        "merged": {"merge_lora_path": str(style)},
        "merged, many": {"merge_lora_paths": [str(m) for m in many]},
        "calibrated": {"calibration_data": str(calibration)},
        "both": {"merge_lora_path": str(style), "calibration_data": str(calibration)},
    }
    for name, asked in options.items():
        names[name] = Path(plan_int8(model, **asked).output).name
    assert names == {
        "plain": "m-int8_row_convrot.safetensors",
        "unrotated": "m-int8_row.safetensors",
        "merged": "m-style-int8_row_convrot.safetensors",
        "merged, many": "m-3_loras-int8_row_convrot.safetensors",
        "calibrated": "m-int8_row_convrot_quip.safetensors",
        "both": "m-style-int8_row_convrot_quip.safetensors",
    }


def test_commands_run_twice(tmp_path, model, capsys):
    """As the README shows them: the second time each says the same, and none fails."""
    output, report = tmp_path / "m-int8_row_convrot.safetensors", tmp_path / "r.json"
    commands = [
        ["-i", model, "--comfy_quant", "--json", report],
        ["-i", model, "--dry-run", "--json", report],
        ["edit", output, "-o", tmp_path / "e.safetensors", "--add-keys", '"a": 1', "--json", report],
        ["edit", output, "--dequantize", "fc1"],
        ["verify", model, output, "--html", tmp_path / "r.html", "--json", report],
        ["-i", tmp_path, "--pattern", "m.safetensors", "-o", tmp_path / "out", "--json", report],
    ]
    for command in [*commands, *commands]:
        assert run(capsys, *command)[0] == 0, command
    calibrate = ["-i", str(model), "-o", str(tmp_path / "c.json")]
    assert calibrate_main(calibrate) == calibrate_main(calibrate) == 0
    assert calibrate_main([*calibrate, "--seed", "1"]) == 1
    assert calibrate_main([*calibrate, "--seed", "1", "--overwrite"]) == 0


@pytest.mark.parametrize("name", ["q.safetensors.part", "q.safetensors.part.journal"])
def test_an_input_with_the_name_of_our_own_work_is_not_touched(tmp_path, model, name):
    source = model.rename(tmp_path / name)
    before = state(source)
    with pytest.raises(ConversionError, match="is an input, and the name under which"):
        convert_to_int8(source, tmp_path / "q.safetensors", overwrite=True)
    assert state(source) == before


@pytest.mark.parametrize("name", ["q.safetensors.part", "q.safetensors.part.journal"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "hard link", "file"])
def test_what_is_not_ours_is_not_worked_in(tmp_path, model, name, kind):
    path, precious = tmp_path / name, tmp_path / "precious"
    precious.write_bytes(b"precious")
    if kind == "link":
        path.symlink_to(precious)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "hard link":
        os.link(precious, path)
    elif name.endswith(".journal"):
        pytest.skip("whatever has a journal's name is a damaged journal")
    else:
        path.write_bytes(b"precious")
    with pytest.raises(ConversionError, match=name):
        convert_to_int8(model, tmp_path / "q.safetensors")
    assert precious.read_bytes() == b"precious"
    assert os.path.lexists(path)
    assert not (tmp_path / "q.safetensors").exists()


@pytest.mark.parametrize("option", ["-o", "--json"])
@pytest.mark.parametrize("role", ["model", "lora", "layer config", "calibration", "shard", "index"])
def test_no_input_of_any_kind_is_written(tmp_path, model, capsys, option, role):
    from models import save_sharded

    lora = save_lora(tmp_path / "l.safetensors", low_rank(FC1, 512, 256)[0])
    config = tmp_path / "layers.json"
    config.write_text(json.dumps({r"blocks\.0\.mlp\.fc1": {"skip": True}}))
    calibration = tmp_path / "c.json"
    calibrate_main(["-i", str(model), "-o", str(calibration)])
    source = model
    if role in ("shard", "index"):
        source = save_sharded(tmp_path / "s", block_weights())
    target = {
        "model": model,
        "lora": lora,
        "layer config": config,
        "calibration": calibration,
        "shard": source.parent / "model-00002-of-00003.safetensors",
        "index": source,
    }[role]
    before = state(target)
    link = tmp_path / "link.safetensors"
    os.link(target, link)
    asked = ["-i", source, "--merge-lora", lora, "--layer-config", config, "--calibration-data", calibration]
    for name in (target, link):
        for more in ([], ["--overwrite"]):
            place = ["-o", tmp_path / "q.safetensors", "--json", name] if option == "--json" else ["-o", name]
            code, _, error = run(capsys, *asked, *place, *more)
            assert code == 1
            assert "is the input" in error
    assert state(target) == before
