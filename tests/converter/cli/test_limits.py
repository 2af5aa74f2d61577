"""Limits on a process's open files and memory: one line, the right exit code, nothing half-written."""

import resource
import subprocess
import sys

import pytest
import torch
from models import save_sharded

from convert_to_quant.converter.cli.main import main

SHARDS = 12
PROGRAM = [sys.executable, "-m", "convert_to_quant"]

LOADED = """
import resource, sys
import convert_to_quant.converter.convert.run, convert_to_quant.converter.verify.run
from convert_to_quant.converter.cli.main import main
room = int(sys.argv[1]) << 20
size = next(int(x.split()[1]) << 10 for x in open("/proc/self/status") if x.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (size + room, size + room))
sys.exit(main(sys.argv[2:]))
"""
"""Run a command line with so many MiB beside what the loaded program has, for that differs by machine."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Twelve shards; one layer of 64 MiB."""
    tensors = {f"blocks.{i}.linear.weight": torch.randn(64, 64) for i in range(SHARDS)}
    tensors["blocks.3.linear.weight"] = torch.randn(4096, 4096)
    return save_sharded(tmp_path_factory.mktemp("shards"), tensors, SHARDS)


@pytest.fixture(scope="module")
def quantized(model):
    assert main(["-i", str(model), "-o", str(model.with_name("q")), "--quiet"]) == 0
    return model.with_name("q")


def commands(model, quantized, output):
    return {
        "convert": ["-i", model, "-o", output],
        "dry run": ["-i", model, "--dry-run"],
        "verify": ["verify", model, quantized],
        "inspect": ["inspect", quantized],
    }


def run(program, argv, *limits):
    """Run a program under limits: (exit code, stderr without notes)."""

    def limit():
        for kind, most in limits:
            resource.setrlimit(kind, (most, most))

    argv = [*program, *map(str, argv)]
    done = subprocess.run(argv, preexec_fn=limit, capture_output=True, text=True, timeout=100)
    return done.returncode, [x for x in done.stderr.splitlines() if not x.startswith("note: ")]


@pytest.mark.parametrize("command", ["convert", "dry run"])
def test_more_shards_than_a_process_may_open(tmp_path, model, quantized, command):
    argv = commands(model, quantized, tmp_path / "o")[command]
    code, errors = run(PROGRAM, argv, (resource.RLIMIT_NOFILE, 10))
    assert (code, len(errors)) == (1, 1), errors
    assert "cannot be read: Too many open files; allow this process more" in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_no_descriptor_is_left_for_the_output(tmp_path, quantized):
    """Standard streams and one input take four; a fifth is for what Python itself imports meanwhile."""
    output = tmp_path / "o"
    argv = ["edit", quantized, "-o", output, "--dequantize", "blocks.3"]
    code, errors = run(PROGRAM, argv, (resource.RLIMIT_NOFILE, 5))
    assert (code, len(errors)) == (1, 1), errors
    assert "Too many open files" in errors[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_too_little_memory_to_load_the_program(tmp_path, model, quantized, command):
    """numpy, which every command loads, puts two dozen lines of advice around what it fails for."""
    most = 60 << 20 if command == "inspect" else 300 << 20  # numpy takes 100 MiB, torch about 500
    argv = commands(model, quantized, tmp_path / "o")[command]
    code, errors = run(PROGRAM, argv, (resource.RLIMIT_AS, most))
    assert (code, len(errors)) == (1, 1), errors
    assert "not enough memory" in errors[0] or "cannot be loaded: " in errors[0]
    assert "report it" not in errors[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("room", [1, 40])
def test_too_little_memory_on_the_way(tmp_path, model, quantized, room):
    """Too little for a thread, and for a layer; then the run is taken up again."""
    output = tmp_path / "o"
    argv = commands(model, quantized, output)["convert"]
    code, errors = run([sys.executable, "-c", LOADED, str(room)], argv)
    assert (code, len(errors)) == (1, 1), errors
    assert errors[0].startswith("error: not enough memory")
    assert not output.exists()
    assert main([*map(str, argv), "--quiet"]) == 0
    assert output.read_bytes() == quantized.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["o"]


def test_a_verification_that_runs_out_of_memory(model, quantized):
    code, errors = run([sys.executable, "-c", LOADED, "1"], ["verify", model, quantized])
    assert (code, len(errors)) == (1, 1), errors
    assert errors[0].startswith("error: not enough memory")
