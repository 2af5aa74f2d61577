"""The interpreter's tests: listed by the pytest that was started, run by one in a process of its own.

`TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreter` runs them in one process, for a debugger.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from interpreted import ON, InterpretedCase, InterpreterProcess

FOLDER = Path(__file__).parent
HERE = os.environ.get(ON) == "1"
PROCESS = pytest.StashKey[InterpreterProcess]()

sys.path.insert(0, str(FOLDER))
if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["*"]
elif HERE:
    import bfloat16
    import shortcuts

    bfloat16.repair()
    shortcuts.take()


def unusable() -> bool:
    """Whether this Triton's interpreter fails with this NumPy: before 3.7 with 2.4 and later."""
    import numpy
    import triton

    triton_version, numpy_version = (
        tuple(int(n) for n in module.__version__.split(".")[:2]) for module in (triton, numpy)
    )
    return triton_version < (3, 7) and numpy_version >= (2, 4)


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem(collector):
    """Put in the place of every test function a case that the other process runs."""
    made = yield
    if HERE or not isinstance(made, list):
        return made
    process = process_of(collector.config)
    cases = [InterpretedCase.from_parent(f.parent, name=f.name, function=f, process=process) for f in made]
    if unusable():
        for case in cases:
            case.add_marker(pytest.mark.skip("needs Triton 3.7, or NumPy before 2.4"))
    return cases


def process_of(config: pytest.Config) -> InterpreterProcess:
    """The one process of this run; it starts with its first case and ends with the run."""
    if PROCESS not in config.stash:
        config.stash[PROCESS] = InterpreterProcess(FOLDER, config.rootpath)
        config.add_cleanup(config.stash[PROCESS].close)
    return config.stash[PROCESS]


@pytest.fixture(scope="session", autouse=True)
def temporary_folder():
    """Leave the other process with the temporary folder of the one that started it, which checks it."""


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
