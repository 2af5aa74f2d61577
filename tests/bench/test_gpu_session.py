"""The session for the first run on a card: every stage without one, and a record that survives."""

import importlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "bench"))
gpu_session = importlib.import_module("gpu_session")
STAGES = ("smoke", "prove", "warm", "exact", "tune", "table", "sweep")


def record(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "session.jsonl").read_text().splitlines()]


def test_every_stage_runs_without_a_gpu(tmp_path):
    command = [sys.executable, "bench/gpu_session.py", *STAGES]
    command += ["--tiny", "--device", "cpu", "--out", str(tmp_path), "--budget", "600"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = record(tmp_path)
    assert {row["stage"] for row in rows} == set(STAGES)
    assert [row["error"] for row in rows if "error" in row and "Missing" not in row["error"]] == []
    assert {row["wrong"] for row in rows if row["stage"] in ("smoke", "exact")} == {0}
    assert all(row["us"] > 0 for row in rows if row["stage"] == "sweep")
    assert not [row for row in rows if "cut" in row]


def session(folder: Path, budget: float = 60.0):
    return gpu_session.Session(folder, "cpu", budget, True)


def test_a_measurement_is_made_once(tmp_path):
    made = []
    for _ in range(2):
        assert session(tmp_path).measure("table", "one", lambda: made.append(1) or {"us": 1.0})
    assert made == [1]
    assert [row["us"] for row in record(tmp_path)] == [1.0]


def test_an_error_is_a_line_and_is_tried_again(tmp_path):
    def fails():
        raise ValueError("no such card")

    first = session(tmp_path)
    assert first.measure("smoke", "one", fails)
    assert first.measure("smoke", "two", dict), "the next one is measured all the same"
    assert session(tmp_path).measure("smoke", "one", dict)
    assert [row.get("error") for row in record(tmp_path)] == ["ValueError: no such card", None, None]


def test_without_time_nothing_is_begun(tmp_path):
    short = session(tmp_path, budget=3.0)
    assert not short.measure("sweep", "one", lambda: pytest.fail("begun"), seconds=5.0)
    assert record(tmp_path) == [{"stage": "sweep", "cut": "one"}]
    assert session(tmp_path).measure("sweep", "one", dict)


def test_a_line_cut_off_in_the_middle_is_left_out(tmp_path):
    (tmp_path / "session.jsonl").write_text('{"stage": "tune", "what": "one"}\n{"stage": "tu')
    assert [row["what"] for row in session(tmp_path).rows()] == ["one"]


def test_rivals_come_from_a_folder_of_wheels(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    with zipfile.ZipFile(tmp_path / "a_rival-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("a_rival_of_ours.py", "FAST = True\n")
    gpu_session.unpack(tmp_path, tmp_path / "rivals")
    assert importlib.import_module("a_rival_of_ours").FAST
    del sys.modules["a_rival_of_ours"]
