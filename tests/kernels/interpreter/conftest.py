"""The interpreter's tests: run by tests/kernels/triton/test_interpreter.py in a process of their own."""

import os
import sys
from pathlib import Path

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["*"]
else:
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "support")]
    import bfloat16

    bfloat16.repair()


@pytest.fixture
def place(monkeypatch):
    """Copies an operand into a surrounded buffer; what the launchers allocate is poisoned as well."""
    from poison import Poison

    from convert_to_quant.kernels.triton import _tuning

    poison = Poison()
    poison.into_launchers(monkeypatch)
    _tuning.forget()  # a plan made with other tiles
    yield poison.place
    poison.check()
