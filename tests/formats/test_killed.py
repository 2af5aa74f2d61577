"""A conversion to any format that is killed -9 in the middle goes on where it stopped: the same bytes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from format_cases import WRITTEN
from models import save

from convert_to_quant.files.writer import OutputFile, scratch_of
from convert_to_quant.quantization import convert_to_int8

SUPPORT = Path(__file__).parents[1] / "support"
STEPS, LAYERS = 3, 6


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """(model, exit status of each case's run, the folder with what they left)."""
    g = torch.Generator().manual_seed(2)
    tensors = {f"blocks.{b}.fc.weight": torch.randn(128, 256, generator=g) for b in range(LAYERS)}
    folder = tmp_path_factory.mktemp("killed")
    model = save(folder / "m.safetensors", {**tensors, "norm": torch.ones(3)})
    command = [sys.executable, str(SUPPORT / "killed.py"), str(model), str(folder)]
    paths = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    return model, json.loads(done.stdout), folder


@pytest.mark.parametrize("at", range(len(WRITTEN)), ids=[str(c) for c in WRITTEN])
def test_goes_on_after_a_kill_with_the_same_bytes(tmp_path, killed, at, monkeypatch):
    model, status, folder = killed
    whole, output = tmp_path / "whole.safetensors", folder / f"{at}.safetensors"
    part, journal = scratch_of(output)
    assert status[at] == -signal.SIGKILL
    assert not output.exists()
    assert len(journal.read_bytes().splitlines()) == 1 + STEPS
    convert_to_int8(model, whole, **WRITTEN[at].options)
    before, done, mark = os.stat(part).st_ino, [], OutputFile.mark
    monkeypatch.setattr(OutputFile, "mark", lambda file, key, note: (done.append(key), mark(file, key, note)))
    convert_to_int8(model, output, **WRITTEN[at].options)
    assert os.stat(output).st_ino == before
    assert len(done) == LAYERS + 1 - STEPS
    assert output.read_bytes() == whole.read_bytes()
