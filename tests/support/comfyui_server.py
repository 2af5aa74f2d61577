"""A real ComfyUI checkout in processes of its own: headless on the loopback, or imported by a worker."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).parents[1] / "comfyui_real"
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or ".").resolve()
STARTED, ANSWERED = 900.0, 900.0
"""Seconds until a server that does not answer is given up."""


class Refused(Exception):
    """ComfyUI would not run a prompt, or a node of it failed; the text is what it says."""


class Server:
    """One ComfyUI process with a base folder of its own; a context manager."""

    def __init__(self, base: Path, nodes: dict[str, Path], *arguments: str) -> None:
        self.base, self.arguments = base, arguments
        for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (base / name).mkdir(parents=True, exist_ok=True)
        for name, folder in nodes.items():
            (base / "custom_nodes" / name).symlink_to(folder, target_is_directory=True)
        self.output = base / "output"
        self.log = base / "log.txt"

    def __enter__(self) -> "Server":
        port = self.base / "port"
        command = [sys.executable, str(HERE / "launch.py"), str(COMFYUI), str(port)]
        command += ["--cpu", "--listen", "127.0.0.1", "--port", "0", "--base-directory", str(self.base)]
        command += ["--database-url", "sqlite:///:memory:", "--disable-api-nodes", "--disable-metadata"]
        command += ["--front-end-root", str(self.base / "user"), "--dont-print-server", *self.arguments]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=self.base)
        end = time.monotonic() + STARTED
        while not port.exists():
            if self.process.poll() is not None or time.monotonic() > end:
                self.__exit__()
                raise RuntimeError(f"ComfyUI did not start:\n{self.text()[-4000:]}")
            time.sleep(0.1)
        self.url = f"http://127.0.0.1:{port.read_text()}"
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def text(self) -> str:
        """Return the log so far."""
        return self.log.read_text(errors="replace")

    def ask(self, path: str, body: object = None) -> object:
        """Send a request; return the JSON of the answer, None for an empty one."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=ANSWERED) as answer:
                raw = answer.read()
        except urllib.error.HTTPError as error:
            raise Refused(error.read().decode()) from None
        return json.loads(raw) if raw else None

    def run(self, prompt: dict) -> dict:
        """Run a workflow in API format to its end; return {node id: its ui outputs}. `Refused` as it says."""
        number = self.ask("/prompt", {"prompt": prompt})["prompt_id"]
        end = time.monotonic() + ANSWERED
        while not (history := self.ask(f"/history/{number}")):
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"ComfyUI gave no answer:\n{self.text()[-4000:]}")
            time.sleep(0.05)
        done = history[number]
        if done["status"]["status_str"] != "success":
            failed = [m for kind, m in done["status"]["messages"] if kind == "execution_error"]
            raise Refused(json.dumps(failed[0] if failed else done["status"]))
        return done["outputs"]

    def free(self) -> None:
        """Let ComfyUI forget its models and what it has cached, and wait until the models are gone."""
        self.ask("/free", {"unload_models": True, "free_memory": True})
        end = time.monotonic() + ANSWERED
        while self.ask("/test/models"):
            if time.monotonic() > end:
                raise RuntimeError("ComfyUI did not let its models go")
            time.sleep(0.05)


class Worker:
    """A process that has imported ComfyUI; attributes are the functions of `families` and `loading`."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, str(HERE / "worker.py"), str(COMFYUI)]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.log = folder / "worker.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stderr=log, cwd=folder, env=environment, **pipes)

    def call(self, module: str, function: str, **request: object) -> object:
        """Return a function's result; RuntimeError with its error."""
        asked = {"module": module, "function": function, **request}
        self.process.stdin.write(json.dumps(asked, default=str) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"the worker died: {self.log.read_text()[-4000:]}"}
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait(30)
