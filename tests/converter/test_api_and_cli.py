"""The two doors of the converter: Python keywords and command-line flags."""

import contextlib
import json
import os
import subprocess
import sys

import pytest
from models import block_weights, layers, save
from safetensors.torch import load_file

from convert_to_quant.converter.cli.main import main
from convert_to_quant.quantization import convert_to_int8


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "model.safetensors", block_weights())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "model-int8_row_convrot.safetensors"),
        ({"convrot": False}, "model-int8_row.safetensors"),
        ({"scaling_mode": "tensor"}, "model-int8_tensor_convrot.safetensors"),
        ({"scaling_mode": "block", "block_size": 64}, "model-int8_block64.safetensors"),
    ],
)
def test_default_output_names_tell_the_format(model, options, name):
    report = convert_to_int8(model, **options)
    assert report.output == str(model.parent / name)
    assert (model.parent / name).exists()


def test_documented_keywords_work_by_name(tmp_path, model):
    report = convert_to_int8(
        input_file=str(model), output_file=str(tmp_path / "q.safetensors"), comfy_quant=True
    )
    assert len(report.layers) == len(layers())
    assert report.bytes_after == (tmp_path / "q.safetensors").stat().st_size
    assert "6 layers in INT8" in report.summary()


@pytest.mark.parametrize(
    ("keyword", "near"), [("scaling", "scaling_mode"), ("conv_rot", "convrot"), ("out_file", "output_file")]
)
def test_unknown_keywords_name_the_nearest(model, keyword, near):
    with pytest.raises(TypeError, match=f"'{keyword}'; did you mean '{near}'"):
        convert_to_int8(model, **{keyword: 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scaling_mode": "rows"}, "scaling mode must be row, tensor or block, not 'rows'"),
        ({"convrot_group_size": 100}, "must be auto, 4, 16, 64, 256 or 1024, not 100"),
        ({"block_size": 100}, "power of two from 16 to 1024, not 100"),
    ],
)
def test_impossible_values_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        convert_to_int8(model, **options)


def test_a_group_that_divides_not_is_refused_before_work(tmp_path, model, capsys):
    assert (
        main(["-i", str(model), "-o", str(tmp_path / "q.safetensors"), "--convrot-group-size", "1024"]) == 1
    )
    error = capsys.readouterr().err
    assert "--convrot-group-size 1024 does not divide the 256 columns of blocks.0.attn.qkv.weight" in error
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_convrot_does_not_apply_to_blocks(model, capsys):
    assert main(["-i", str(model), "--scaling_mode", "block", "--convrot"]) == 1
    assert "--convrot does not apply" in capsys.readouterr().err


FLAGS = {
    "defaults": ([], {}),
    "comfy_quant": (["--comfy_quant"], {}),
    "comfy-quant": (["--comfy-quant"], {}),
    "int8": (["--int8", "--comfy_quant"], {}),
    "tensor": (["--scaling_mode", "tensor"], {"scaling_mode": "tensor"}),
    "axis": (["--scaling-mode", "axis", "--no-convrot"], {"convrot": False}),
    "block": (["--scaling_mode=block", "--block_size=64"], {"scaling_mode": "block", "block_size": 64}),
    "group": (["--convrot", "--convrot-group-size", "64"], {"convrot_group_size": 64}),
    "metadata": (["--save-quant-metadata"], {"save_quant_metadata": True}),
    "no-verify": (["--no-verify"], {"verify": False}),
}


@pytest.mark.parametrize(("flags", "options"), FLAGS.values(), ids=FLAGS)
def test_flags_and_keywords_write_the_same_file(tmp_path, model, flags, options):
    assert main(["-i", str(model), "-o", str(tmp_path / "a.safetensors"), *flags]) == 0
    convert_to_int8(model, tmp_path / "b.safetensors", **options)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_what_a_run_prints(tmp_path, model, capsys):
    out_json = tmp_path / "report.json"
    flags = ["--report-quality", "--quality-threshold", "90"]
    files = ["-i", str(model), "-o", str(tmp_path / "q.safetensors"), "--json", str(out_json)]
    code = main([*files, *flags])
    assert code == 0
    out, err = capsys.readouterr()
    assert "INT8 row + convrot 256" in out
    assert "kept: outside the repeated blocks" in out
    assert all(layer in out for layer in layers()), "--report-quality lists every layer"
    assert "6 layers in INT8" in out
    assert err.count("warning: ") == len(layers())
    assert "below 90 dB" in err
    report = json.loads(out_json.read_text())
    assert [r["name"] for r in report["layers"]] == layers()
    assert report["layers"][0]["sqnr_db"] > 38
    assert report["bytes_after"] == (tmp_path / "q.safetensors").stat().st_size
    assert {k["reason"] for k in report["kept"]} >= {"norm", "bias", "outside the repeated blocks"}


def test_help_fits_a_screen_and_topics_show_the_rest(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    short = capsys.readouterr().out
    assert len(short.splitlines()) <= 48
    assert max(map(len, short.splitlines())) <= 100
    assert "--scaling_mode" in short
    assert "--no-verify" not in short
    with pytest.raises(SystemExit, match="0"):
        main(["--help", "checks"])
    assert "--no-verify" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["--help", "all"])
    everything = capsys.readouterr().out
    assert "--no-verify" in everything
    assert "--preset" in everything


@pytest.mark.parametrize("argv", [["--nonsense"], ["-i"], ["--help", "nonsense"], ["-o", "x"]], ids=str)
def test_a_wrong_command_line_is_code_2(argv, capsys):
    with pytest.raises(SystemExit) as e:
        main(argv)
    assert e.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_word_that_is_no_command_is_told_what_was_meant(model, capsys):
    for word, hint in (
        (str(model), f"an input is given with -i {model}"),
        ("verfy", "did you mean 'verify'?"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main([word])
        assert hint in capsys.readouterr().err


def test_no_arguments_show_the_help(capsys):
    assert main([]) == 2
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["-m", "convert_to_quant"]], ids=["module"])
def test_as_a_process(tmp_path, model, command):
    done = subprocess.run(
        [sys.executable, *command, "-i", str(model), "-o", str(tmp_path / "q.safetensors"), "--comfy_quant"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr, "no colours or bars where there is no terminal"
    assert "blocks.0.attn.qkv.weight_scale" in load_file(str(tmp_path / "q.safetensors"))
    version = subprocess.run([sys.executable, *command, "--version"], capture_output=True, text=True)
    assert version.stdout.startswith("convert_to_quant 0.")


def test_a_bar_where_there_is_a_terminal(tmp_path, model):
    pty = pytest.importorskip("pty")
    command = [
        sys.executable,
        "-m",
        "convert_to_quant",
        "-i",
        str(model),
        "-o",
        str(tmp_path / "q.safetensors"),
    ]
    lead, follow = pty.openpty()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=follow, env={**os.environ, "TERM": "xterm"}
    )
    os.close(follow)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal closes with its process
        while data := os.read(lead, 4096):
            shown += data
    process.communicate()
    os.close(lead)
    assert process.returncode == 0
    assert b"blocks.1.mlp.fc2" in shown
    assert b"%" in shown
    assert b"MB/s" in shown
