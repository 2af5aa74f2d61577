"""Several processes and one output: exactly one writes it, the others end in one line that says so."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import save

RACING = Path(__file__).parents[2] / "support" / "racing.py"
KILLED = -9


def rounds(folder, count, seed):
    """Race `count` times: (the digests of the three results, the rounds)."""
    g = torch.Generator().manual_seed(0)
    tensors = {f"blocks.{b}.fc.weight": torch.randn(256, 256, generator=g) for b in range(8)}
    model = save(folder / "m.safetensors", tensors)
    command = [sys.executable, str(RACING), str(model), str(folder), str(count), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return found["wanted"], found["rounds"]


def test_two_runs_on_one_output(tmp_path):
    pytest.importorskip("fcntl")
    wanted, found = rounds(tmp_path, 5, 0)
    assert len({*wanted, ""}) == 4
    for r in found:
        winners = [
            way for code, way, said in zip(r["codes"], r["ways"], r["said"], strict=True) if wrote(code, said)
        ]
        assert len(winners) <= 1, r
        assert r["digest"] in ("", *wanted), r
        assert set(r["codes"]) <= {0, 1, KILLED}, r
        if winners:
            assert r["digest"] == wanted[winners[0]], r
        if KILLED not in r["codes"]:
            assert winners, r
            assert r["left"] == [], r
        for code, way, said in zip(r["codes"], r["ways"], r["said"], strict=True):
            if code == 1:
                assert said.count("\n") == 1, r
                assert "another conversion is writing this output" in said or "exists, and" in said, r
            if code == 0 and not wrote(code, said):
                assert r["digest"] == wanted[way], r


def wrote(code, said):
    return code == 0 and "already there" not in said
