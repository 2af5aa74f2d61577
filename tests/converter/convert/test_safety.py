"""What a conversion leaves behind when it is killed, interrupted, refused or out of room."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import block_weights, save

from convert_to_quant.converter.cli.main import main
from convert_to_quant.quantization import ConversionError, convert_to_int8

COMMAND = [sys.executable, "-m", "convert_to_quant"]
STOPPED = [sys.executable, str(Path(__file__).parents[2] / "support" / "stopped.py")]


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """A model of many steps: 40 layers of 1 MiB."""
    g = torch.Generator().manual_seed(0)
    tensors = {f"blocks.{b}.fc.weight": torch.randn(512, 512, generator=g) for b in range(40)}
    return save(tmp_path_factory.mktemp("big") / "m.safetensors", tensors)


def run_process(command, *args, **kwargs):
    """Run a command to its end: (exit code, stdout, stderr)."""
    done = subprocess.run([*command, *map(str, args)], capture_output=True, text=True, **kwargs)
    return done.returncode, done.stdout, done.stderr


def stop_in_the_middle(source, output, how):
    """Convert in a process that sends itself a signal after four layers; returns (exit code, stderr)."""
    code, _, errors = run_process([*STOPPED, how.name], "-i", source, "-o", output)
    return code, errors


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_a_stopped_run_leaves_no_output_and_is_gone_on_with(tmp_path, big, how):
    whole = tmp_path / "whole.safetensors"
    convert_to_int8(big, whole)
    output = tmp_path / "q.safetensors"
    code, errors = stop_in_the_middle(big, output, how)
    assert code == (-signal.SIGKILL if how == signal.SIGKILL else 130), errors
    if how == signal.SIGINT:
        assert "the same command resumes where it stopped" in errors
        assert "Traceback" not in errors
    assert not output.exists()
    part = output.with_name(output.name + ".part")
    done = output.with_name(output.name + ".part.journal").read_bytes().count(b"\n") - 1
    assert 0 < done < 40
    # Poison what is not done yet and leave what is: only a resumed run keeps the done layers unread.
    before = part.stat().st_ino
    code, _, errors = run_process(COMMAND, "-i", big, "-o", output)
    assert code == 0, errors
    assert output.stat().st_ino == before, "the .part file itself became the output"
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["q.safetensors", "whole.safetensors"]


def test_a_resumed_run_does_not_do_finished_layers_again(tmp_path, big):
    output = tmp_path / "q.safetensors"
    stop_in_the_middle(big, output, signal.SIGKILL)
    journal = output.with_name(output.name + ".part.journal")
    finished = journal.read_text().splitlines()[1:-1]
    seen = []

    class Watch:
        def start(self, total, done):
            seen.append((total, done))

        def advance(self, name, nbytes):
            seen.append(name)

        def stop(self):
            pass

    from convert_to_quant.converter.convert.run import convert
    from convert_to_quant.converter.options.settings import Settings

    report = convert(Settings(input_file=str(big), output_file=str(output)), Watch())
    _, done = seen[0]
    assert done >= len(finished) * 1024 * 1024
    assert len(seen) - 1 == 40 - done // (1024 * 1024)
    assert len(report.layers) == 40, "the report covers the layers of both runs"
    assert all(r.sqnr_db and r.sqnr_db > 38 for r in report.layers)


def test_a_part_of_another_job_is_not_gone_on_with(tmp_path, big):
    output = tmp_path / "q.safetensors"
    stop_in_the_middle(big, output, signal.SIGKILL)
    convert_to_int8(big, output, convrot=False)
    convert_to_int8(big, tmp_path / "whole.safetensors", convrot=False)
    assert output.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_a_changed_input_is_not_gone_on_with(tmp_path):
    source = save(tmp_path / "m.safetensors", block_weights())
    output = tmp_path / "q.safetensors"
    bad = block_weights(blocks=3)
    bad["blocks.2.mlp.fc2.weight"][0, 0] = float("nan")
    save(source, bad)
    with pytest.raises(ConversionError, match=r"blocks\.2\.mlp\.fc2"):
        convert_to_int8(source, output)
    assert output.with_name("q.safetensors.part.journal").exists()
    good = block_weights(blocks=3, seed=1)
    save(source, good)
    convert_to_int8(source, output)
    convert_to_int8(source, tmp_path / "whole.safetensors")
    assert output.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_two_runs_on_one_output(tmp_path, big):
    fcntl = pytest.importorskip("fcntl")
    journal = tmp_path / "q.safetensors.part.journal"
    with open(journal, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConversionError, match="another conversion is writing this output"):
            convert_to_int8(big, tmp_path / "q.safetensors")
        assert [p.name for p in tmp_path.iterdir()] == [journal.name]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"convrot": False}, {"scaling_mode": "tensor"}, {"scaling_mode": "block"}], ids=str
)
def test_nan_and_inf_are_refused_by_name_and_place(tmp_path, value, options):
    source = block_weights()
    source["blocks.1.mlp.fc1.weight"][7, 11] = value
    path = save(tmp_path / "m.safetensors", source)
    with pytest.raises(ConversionError, match=r"blocks\.1\.mlp\.fc1\.weight.*1 values.*row 7, column 11"):
        convert_to_int8(path, tmp_path / "q.safetensors", **options)
    assert not (tmp_path / "q.safetensors").exists()


def test_the_input_is_never_touched_nor_written_over(tmp_path):
    path = save(tmp_path / "m.safetensors", block_weights())
    before = path.read_bytes(), path.stat().st_mtime_ns
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    for target in (path, link):
        with pytest.raises(ConversionError, match="the output is the input"):
            convert_to_int8(path, target)
    convert_to_int8(path, tmp_path / "q.safetensors")
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_an_older_output_stays_until_the_new_one_is_whole(tmp_path):
    good = save(tmp_path / "good.safetensors", block_weights())
    output = tmp_path / "q.safetensors"
    convert_to_int8(good, output)
    before = output.read_bytes()
    bad = block_weights(seed=2)
    bad["blocks.1.mlp.fc2.weight"][0, 0] = float("nan")
    with pytest.raises(ConversionError):
        convert_to_int8(save(tmp_path / "bad.safetensors", bad), output)
    assert output.read_bytes() == before


def test_places_that_cannot_be_written(tmp_path):
    path = save(tmp_path / "m.safetensors", block_weights())
    with pytest.raises(ConversionError, match="no such folder for the output"):
        convert_to_int8(path, tmp_path / "none" / "q.safetensors")
    with pytest.raises(ConversionError, match="is a folder"):
        convert_to_int8(path, tmp_path)


def test_a_disk_that_is_too_small(tmp_path, big):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this machine lets no test mount a small disk")
    try:
        code, _, errors = run_process(COMMAND, "-i", big, "-o", disk / "q.safetensors")
        assert code == 1
        assert errors.count("\n") == 1
        assert "not enough room" in errors
        assert "8.0 MiB are free" in errors
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_limit_on_file_size(tmp_path, big):
    code, _, errors = run_process(
        COMMAND,
        "-i",
        big,
        "-o",
        tmp_path / "q.safetensors",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )
    assert code == 1
    assert errors.startswith("error: ")
    assert "cannot be written: File too large" in errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["missing", "truncated", "same path", "nan", "folder missing"])
def test_refusals_are_one_line_and_a_code(tmp_path, damage, capfd):
    source = block_weights()
    if damage == "nan":
        source["blocks.0.mlp.fc1.weight"][0, 0] = float("nan")
    path = save(tmp_path / "m.safetensors", source)
    output = tmp_path / "q.safetensors"
    if damage == "missing":
        path.unlink()
    if damage == "truncated":
        os.truncate(path, path.stat().st_size - 10)
    if damage == "same path":
        output = path
    if damage == "folder missing":
        output = tmp_path / "none" / "q.safetensors"
    code = main(["-i", str(path), "-o", str(output)])
    out, errors = capfd.readouterr()
    assert code == 1
    assert out == ""
    lines = [line for line in errors.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert not (tmp_path / "q.safetensors").exists()
