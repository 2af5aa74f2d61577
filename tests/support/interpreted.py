"""Cases that a process of their own runs, in which Triton's interpreter is switched on.

Interpreter and compiler exclude each other: a process has the one or the other from its first import of
triton.language on. So this process lists the cases, and a second pytest runs each of them when asked. It
starts with the first case and serves all later ones; under pytest-xdist every worker has its own. When
it dies, the case that it was running fails with what it last wrote, and the next case starts another.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ON = "TRITON_INTERPRET"


class InterpreterProcess:
    """A pytest that runs cases of one folder by their node ids."""

    def __init__(self, folder: Path, root: Path):
        self._command = [sys.executable, __file__, str(folder), f"--rootdir={root}"]
        self._root = root
        self._process: subprocess.Popen | None = None

    def run(self, nodeid: str) -> list[dict]:
        """Run one case: when, outcome and text of its set-up, call and tear-down.

        Raises ProcessEnded when the process ends instead of answering.
        """
        if self._process is None:
            self._process = self._start()
        try:
            self._process.stdin.write(json.dumps(nodeid) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        return json.loads(answer) if answer else self._report_end()

    def _start(self) -> subprocess.Popen:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        path = os.pathsep.join(p for p in (str(self._root), os.environ.get("PYTHONPATH")) if p)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        return subprocess.Popen(
            self._command,
            cwd=self._root,
            env={**inherited, ON: "1", "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def _report_end(self):
        code = self._process.wait()
        self._log.seek(0)
        last = self._log.read().decode(errors="replace")[-6000:]
        self.close()
        raise ProcessEnded(f"the interpreter's process ended with code {code}; its last words:\n{last}")

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is None:
            return
        try:
            self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._log.close()
        self._process = None


class ProcessEnded(Exception):
    """The other process died."""


class CaseFailed(Exception):
    """The text of a failure in the other process."""


class InterpretedCase(pytest.Item):
    """A test function that is listed here and runs in `process`."""

    def __init__(self, *, function: pytest.Function, process: InterpreterProcess, **given):
        super().__init__(**given)
        self._process = process
        self._source = function.reportinfo()
        self.own_markers.extend(function.own_markers)
        self.extra_keyword_matches.update(function.extra_keyword_matches)

    def runtest(self) -> None:
        """Pass, fail or be skipped as the case is over there."""
        for report in self._process.run(self.nodeid):
            if report["outcome"] == "skipped":
                pytest.skip(report["text"])
            if report["outcome"] == "failed":
                raise CaseFailed(report["text"])

    def repr_failure(self, excinfo, style=None):
        """The traceback from over there; an error of this process as pytest shows any."""
        if isinstance(excinfo.value, (CaseFailed, ProcessEnded)):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self):
        return self._source


class Server:
    """The plugin of the other process: it runs the cases that are asked for, and answers."""

    def __init__(self, requests, answers):
        self._requests, self._answers = requests, answers
        self._reports: list[dict] = []

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Read one node id a line, and write one line with its reports."""
        if session.testsfailed:
            raise session.Interrupted("the cases cannot be collected")
        cases = {item.nodeid: item for item in session.items}
        for line in self._requests:
            self._reports.clear()
            session.config.hook.pytest_runtest_protocol(item=cases[json.loads(line)], nextitem=None)
            print(json.dumps(self._reports), file=self._answers, flush=True)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what the other side shows: the reason of a skip, or the traceback and what was printed."""
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        if report.failed:
            printed = [f"---- {title} ----\n{content}" for title, content in report.sections]
            text = "\n".join([f"in the {report.when} of the case:\n{text}", *printed])
        self._reports.append({"when": report.when, "outcome": report.outcome, "text": text})


def serve(arguments: list[str]) -> int:
    """Collect the cases and run what standard input asks for; whatever pytest prints goes to stderr."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    options = ["-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore::RuntimeWarning"]
    return pytest.main([*options, *arguments], plugins=[Server(requests, answers)])


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1:]))
