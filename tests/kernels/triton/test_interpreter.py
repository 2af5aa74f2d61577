"""The process that runs the cases of tests/kernels/interpreter: outcomes, and what happens when it dies."""

import textwrap
from types import SimpleNamespace

import interpreted
import pytest

CASES = """
    import os, signal, pytest

    def test_passes():
        assert os.environ["TRITON_INTERPRET"] == "1"

    def test_fails():
        print("said before")
        assert 1 + 1 == 3

    def test_is_skipped():
        pytest.skip("not today")

    @pytest.fixture
    def torn():
        yield
        raise ValueError("in the tear-down")

    def test_fails_afterwards(torn):
        pass

    def test_dies():
        os.write(2, b"last words")
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    (folder / "test_cases.py").write_text(textwrap.dedent(CASES))
    process = interpreted.InterpreterProcess(folder, folder)
    yield process
    process.close()


def run(process, name):
    """What `InterpretedCase.runtest` does with the case's reports."""
    case = SimpleNamespace(_process=process, nodeid=f"test_cases.py::{name}")
    interpreted.InterpretedCase.runtest(case)


def test_a_case_passes(process):
    run(process, "test_passes")


def test_a_failure_comes_with_its_traceback_and_what_was_printed(process):
    with pytest.raises(interpreted.CaseFailed, match=r"(?s)in the call.*1 \+ 1.*said before"):
        run(process, "test_fails")


def test_a_failing_tear_down_fails_the_case(process):
    with pytest.raises(interpreted.CaseFailed, match=r"(?s)in the teardown.*ValueError: in the tear-down"):
        run(process, "test_fails_afterwards")


def test_a_skip_comes_with_its_reason(process):
    with pytest.raises(pytest.skip.Exception, match="not today"):
        run(process, "test_is_skipped")


def test_a_dead_process_fails_its_case_and_the_next_case_has_a_new_one(process):
    with pytest.raises(interpreted.ProcessEnded, match=r"(?s)code -9.*last words"):
        run(process, "test_dies")
    run(process, "test_passes")


def test_cases_that_cannot_be_collected_say_why(tmp_path):
    (tmp_path / "test_cases.py").write_text("import no_such_module\n")
    process = interpreted.InterpreterProcess(tmp_path, tmp_path)
    with pytest.raises(interpreted.ProcessEnded, match="No module named 'no_such_module'"):
        run(process, "test_passes")
    process.close()
