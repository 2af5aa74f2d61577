"""Conversions of models that are elsewhere, from a real web server that fails."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from models import block_weights, save, save_sharded
from range_server import Content, RangeServer
from safetensors.torch import load_file, safe_open

from convert_to_quant.converter.cli.main import main
from convert_to_quant.files.header import OutputTensor, build_header
from convert_to_quant.files.remote import ahead, source
from convert_to_quant.formats.names import JOB_KEY

SUPPORT = Path(__file__).parents[2] / "support"


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(ahead, "BLOCK", 1 << 16)
    monkeypatch.chdir(tmp_path)
    with RangeServer() as running:
        yield running


@pytest.fixture
def model(tmp_path, server):
    """The address of a model on the server; it is also m.safetensors here."""
    path = save(tmp_path / "m.safetensors", block_weights(), {"from": "there"})
    server.files["/a/m.safetensors"] = Content(path.read_bytes())
    return f"{server.url}/a/m.safetensors?sig=SIGNED"


def same(one: str, other: str) -> bool:
    """Tell whether two files have the same tensors and, but for the job, the same metadata."""
    metadata = []
    for name in (one, other):
        with safe_open(name, "pt") as f:
            metadata.append({k: v for k, v in f.metadata().items() if k != JOB_KEY})
    a, b = load_file(one), load_file(other)
    return metadata[0] == metadata[1] and a.keys() == b.keys() and all(a[n].equal(b[n]) for n in a)


def test_a_model_of_24_gb_is_looked_at_through_its_header(server, capsys):
    tensors = [OutputTensor(f"blocks.{i}.mlp.fc1.weight", "BF16", (12288, 12288)) for i in range(80)]
    tensors += [OutputTensor(f"blocks.{i}.mlp.fc1.bias", "BF16", (12288,)) for i in range(80)]
    head, _, size = build_header(tensors, {})
    assert size > 24e9
    server.files["/big.safetensors"] = Content(head, size=size)
    assert main(["inspect", f"{server.url}/big.safetensors"]) == 0
    assert main(["-i", f"{server.url}/big.safetensors", "--dry-run", "--quiet"]) == 0
    assert "80 layers to INT8" in capsys.readouterr().out
    assert server.sent < 100_000


def test_a_conversion_streams_and_says_whence(server, model, tmp_path, capsys):
    assert main(["-i", model, "--json", "report.json", "--quiet"]) == 0
    assert main(["-i", "m.safetensors", "-o", "local.safetensors", "--quiet"]) == 0
    assert same("m-int8_row_convrot.safetensors", "local.safetensors")
    size = server.files["/a/m.safetensors"].size
    assert size <= server.sent < 1.1 * size, "every byte once, and the header"
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["input"] == f"{server.url}/a/m.safetensors"
    before = server.sent
    assert main(["-i", model.replace("SIGNED", "ANEW"), "--quiet"]) == 0
    assert server.sent - before < 50_000
    told = capsys.readouterr()
    assert "already there, made before" in told.out
    assert "SIGNED" not in told.out + told.err + (tmp_path / "report.json").read_text()
    assert main(["verify", model, "local.safetensors"]) == 0


def test_failures_on_the_way_change_no_byte(server, model):
    server.faults = ["none", "reset", "none", "busy", "broken", "none", "short", "reset", "short", "busy"] * 2
    assert main(["-i", model, "-o", "out.safetensors", "--quiet"]) == 0
    assert server.faults == []
    assert main(["-i", "m.safetensors", "-o", "local.safetensors", "--quiet"]) == 0
    assert same("out.safetensors", "local.safetensors")


def test_a_run_that_lost_its_connection_is_resumed(server, model, capsys):
    server.faults = ["none"] * 20 + ["busy_for_hours"] * 10
    assert main(["-i", model, "-o", "out.safetensors"]) == 1
    assert "given up after 1 try: run the same command again later, a conversion" in capsys.readouterr().err
    server.faults, before = [], server.sent
    assert main(["-i", model, "-o", "out.safetensors", "--quiet"]) == 0
    assert server.sent - before < 0.8 * server.files["/a/m.safetensors"].size
    assert main(["-i", "m.safetensors", "-o", "local.safetensors", "--quiet"]) == 0
    assert same("out.safetensors", "local.safetensors")


def test_a_run_that_was_killed_is_resumed(server, model, tmp_path):
    """By SIGKILL, in a process of its own, once four steps are whole."""
    assert main(["-i", model, "-o", "whole.safetensors", "--quiet"]) == 0
    size, before = server.files["/a/m.safetensors"].size, server.sent
    command = [sys.executable, str(SUPPORT / "stopped.py"), "SIGKILL", "-i", model, "-o", "out.safetensors"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert server.sent > before
    assert sorted(p.name for p in tmp_path.glob("out*")) == [
        "out.safetensors.part",
        "out.safetensors.part.journal",
    ]
    before = server.sent
    assert main(["-i", model, "-o", "out.safetensors", "--quiet"]) == 0
    assert server.sent - before < 0.9 * size, "what was written is not read again"
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert sorted(p.name for p in tmp_path.glob("out*")) == ["out.safetensors"]


def test_a_run_is_not_resumed_with_another_file(server, model, tmp_path):
    server.faults = ["none"] * 20 + ["busy_for_hours"] * 10
    assert main(["-i", model, "-o", "out.safetensors"]) == 1
    other = save(tmp_path / "o.safetensors", block_weights(seed=1), {"from": "there"})
    server.faults, server.files = [], {"/a/m.safetensors": Content(other.read_bytes(), '"2"')}
    assert main(["-i", model, "-o", "out.safetensors", "--quiet"]) == 0
    assert main(["-i", "o.safetensors", "-o", "local.safetensors", "--quiet"]) == 0
    assert same("out.safetensors", "local.safetensors")


@pytest.mark.parametrize("when", [5, 20])
def test_a_file_that_changes_meanwhile_stops_the_run(server, model, tmp_path, capsys, when):
    server.faults = ["none"] * when + ["changed"]
    assert main(["-i", model, "-o", "out.safetensors"]) == 1
    assert "/a/m.safetensors: was changed, replaced or removed while it was read" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


def test_a_change_after_the_last_byte_is_seen_too(server, model, tmp_path, capsys, monkeypatch):
    from convert_to_quant.converter.convert import run

    def amend(*args):
        server.files["/a/m.safetensors"].etag = '"2"'
        return args[0]

    monkeypatch.setattr(run, "filled", amend)
    assert main(["-i", model, "-o", "out.safetensors"]) == 1
    assert "was changed, replaced or removed" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors"], "nothing is left to be resumed"


def test_a_file_without_a_version_is_never_the_same_again(server, model, capsys):
    server.files["/a/m.safetensors"].etag = None
    assert main(["-i", model, "-o", "out.safetensors", "--quiet"]) == 0
    assert main(["-i", model, "-o", "out.safetensors", "--quiet"]) == 1
    assert "exists, and it is not the result of this very command" in capsys.readouterr().err


def test_shards_are_read_from_the_folder_of_their_index(server, tmp_path):
    index = save_sharded(tmp_path / "shards", block_weights())
    for file in index.parent.iterdir():
        server.files[f"/b/{file.name}"] = Content(file.read_bytes(), f'"{file.name}"')
    assert main(["-i", f"{server.url}/b/{index.name}", "-o", "out.safetensors", "--quiet"]) == 0
    assert main(["-i", "shards", "-o", "local.safetensors", "--quiet"]) == 0
    assert same("out.safetensors", "local.safetensors")


@pytest.mark.parametrize("largest", [0, 1 << 20])
def test_values_that_are_not_finite_are_told_as_they_come(server, tmp_path, monkeypatch, capsys, largest):
    from convert_to_quant.converter.plan import estimate

    monkeypatch.setattr(estimate, "CARRIED_BYTES", largest)
    tensors = block_weights()
    tensors["final_layer.weight"][1, 1] = float("nan")
    path = save(tmp_path / "n.safetensors", tensors)
    server.files["/n.safetensors"] = Content(path.read_bytes())
    for name in (f"{server.url}/n.safetensors", "n.safetensors"):
        assert main(["-i", name, "-o", "out.safetensors", "--overwrite", "--quiet"]) == 0
        line = "final_layer.weight: holds NaN or Inf (1 of 16384 values, the first at 257) and is"
        assert line in capsys.readouterr().err
        assert main(["-i", name, "-o", "strict.safetensors", "--strict"]) == 1
        assert f"--strict: {line}" in capsys.readouterr().err


def test_an_interruption_ends_a_wait(server, model, monkeypatch):
    from convert_to_quant.converter.convert import run

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "check_layer", interrupt)
    server.faults = ["none"] * 12 + ["busy_for_minutes"] * 30
    assert main(["-i", model, "-o", "out.safetensors", "--quiet"]) == 130


def test_models_here_and_there_are_one_batch(server, model, tmp_path, capsys):
    missing = f"{server.url}/none.safetensors?sig=SIGNED"
    assert main(["-i", model, missing, "m.safetensors", "-o", "all", "--quiet"]) == 1
    told = capsys.readouterr()
    assert "m.safetensors and" in told.err
    assert main(["-i", model, missing, "-o", "all", "--quiet", "--json", "report.json"]) == 1
    told = capsys.readouterr()
    assert "1 of 2 models done, 1 failed" in told.out
    assert "SIGNED" not in told.out + told.err + (tmp_path / "report.json").read_text()
    assert [p.name for p in (tmp_path / "all").iterdir()] == ["m-int8_row_convrot.safetensors"]


def test_edit_reads_from_elsewhere(server, model):
    assert main(["-i", model, "-o", "q.safetensors", "--quiet"]) == 0
    with open("q.safetensors", "rb") as f:
        server.files["/q.safetensors"] = Content(f.read())
    arguments = ["--remove-keys", "x_embedder.bias", "--dequantize", "blocks.0.mlp.fc1"]
    assert main(["edit", f"{server.url}/q.safetensors", *arguments]) == 0
    assert main(["edit", "q.safetensors", "-o", "local.safetensors", *arguments]) == 0
    assert same("q-edited.safetensors", "local.safetensors")
