"""Launches replayed without being found again: the same ones, through Triton's real launcher.

The bits they give are the interpreter's tests' matter (tests/kernels/interpreter).
"""

import subprocess
import sys
from pathlib import Path

import pytest

from convert_to_quant.kernels._library import LAUNCHERS
from convert_to_quant.kernels.triton._gluon import tiles as gluon_tiles

pytest.importorskip("triton.backends.nvidia")

ROOT = Path(__file__).parents[3]


def launch(*arguments: str) -> list[list[str]]:
    """The lines of tests/support/launch_path.py, as fields; all of them must end in "the same"."""
    command = [sys.executable, "tests/support/launch_path.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    if "NoCompiler" in done.stderr:
        pytest.skip("no C compiler to build the stub driver with")
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split(" | ") for line in done.stdout.splitlines()]
    assert [line for line in lines if line[-1] != "the same"] == []
    return lines


@pytest.mark.parametrize(("family", "calls"), [("sm80", 24), ("sm90", 48)])
def test_replays_make_the_launches_of_the_first_call(family, calls):
    every = launch(family)
    lines = [line for line in every if not line[0].startswith("gluon")]
    assert len(lines) == calls
    tiles = gluon_tiles(family, (9000, 1536, 144))
    assert [line[0] for line in every if line not in lines] == [t.label for t in tiles for _ in range(2)]
    counts = {line[0]: line[2] for line in lines if line[1] == "300 torch.bfloat16"}
    assert counts["int8_linear, rotation 256"] == "2 launches"
    assert counts["quantize_rowwise, rotation 256"] == "1 launches"


def test_cases_of_the_interpreter_compile_and_launch():
    """On sm_90, through Triton's own specialization, so with the code that a GPU would be given.

    Every fourth one: dtypes take turns over the shapes, and each of the others differs in one from its
    neighbours.
    """
    lines = launch("sm90", "cases", "0", "4")
    assert {line[0] for line in lines} == set(LAUNCHERS)
    assert len(lines) > 60


def test_the_bench_of_host_time_runs():
    command = [sys.executable, "bench/launch", "--rounds", "1", "--repeats", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    if "no C compiler" in done.stderr:
        pytest.skip("no C compiler to build the stub driver with")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| int8_linear, rotation 256 |" in done.stdout
