"""Runs tests/triton_interpreter in a process of its own: interpreter and compiler exclude each other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_kernels_under_the_interpreter():
    """All cases of tests/triton_cases.py and the rarer tiles, in one subprocess; its report on failure."""
    root = Path(__file__).parent.parent
    path = os.pathsep.join(p for p in (str(root), os.environ.get("PYTHONPATH")) if p)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "pytest", "--maxfail=5", "-p", "no:cacheprovider",
               "-W", "ignore::RuntimeWarning", "tests/triton_interpreter"]  # fmt: skip
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
