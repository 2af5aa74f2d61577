"""Runs tests/kernels/interpreter in a process of its own: interpreter and compiler exclude each other."""

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

triton = pytest.importorskip("triton")

BOTH = [tuple(int(n) for n in m.__version__.split(".")[:2]) for m in (triton, numpy)]
"""(major, minor) of Triton and of NumPy."""


@pytest.mark.skipif(BOTH[0] < (3, 7) and BOTH[1] >= (2, 4), reason="needs Triton 3.7, or NumPy before 2.4")
def test_kernels_under_the_interpreter():
    """All of support/triton_cases.py and the rarer tiles, in one subprocess; its report on failure."""
    root = Path(__file__).parents[3]
    path = os.pathsep.join(p for p in (str(root), os.environ.get("PYTHONPATH")) if p)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "pytest", "--maxfail=5", "-p", "no:cacheprovider",
               "-W", "ignore::RuntimeWarning", "tests/kernels/interpreter"]  # fmt: skip
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
