"""Host time of each op in this tree and in another one, by turns, for machines that are never idle.

    git worktree add ../before COMMIT
    python bench/launch/compare.py ../before

Two processes, one for each tree, run a few calls each in turn; the fastest batch of each counts. Whatever
else the machine does then falls on both alike, and a minimum over many short batches leaves it out.
"""

import argparse
import gc
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve()
KINDS = ("planned", "replayed")
PACKAGES = (
    "comfyui_nodes",
    "converter",
    "files",
    "folding",
    "formats",
    "integrations",
    "kernels",
    "names",
    "quant",
)
"""Folders at the top of a tree that are imported below convert_to_quant."""


class Tree:
    """Finds convert_to_quant in a tree of its own, whatever is installed."""

    def __init__(self, root: Path):
        folders = {"convert_to_quant": root / "convert_to_quant"}
        folders |= {f"convert_to_quant.{name}": root / name for name in PACKAGES}
        self._init = {name: folder / "__init__.py" for name, folder in folders.items()}

    def find_spec(self, name, path=None, target=None):
        init = self._init.get(name)
        if init is None or not init.exists():
            return None
        return importlib.util.spec_from_file_location(
            name, init, submodule_search_locations=[str(init.parent)]
        )


def serve(root: Path, rows: int) -> None:
    """Time what the lines of standard input name: ``title|kind|calls``; print microseconds per call."""
    sys.meta_path.insert(0, Tree(root))
    sys.path.insert(0, str(root / "bench" / "launch"))
    import stub
    import torch

    torch.set_num_threads(1)
    stub.install()
    calls = {}
    for title, (op, args) in stub.calls(rows, 512, 512).items():
        launcher = stub.launcher(op)
        launcher(*args)  # compiles
        launcher(*args)
        # Before plans were values, a launcher undecorated was what is planned anew today.
        plain = launcher if hasattr(launcher, "plan") else launcher.__wrapped__
        calls[title] = args, {"planned": plain, "replayed": launcher}
    gc.collect()
    gc.freeze()
    print("|".join(calls), flush=True)
    for line in sys.stdin:
        title, kind, count = line.rstrip("\n").split("|")
        os.environ["CONVERT_TO_QUANT_REPLAY"] = "0" if kind == "planned" else "1"
        args, functions = calls[title]
        function, numbers = functions[kind], range(int(count))
        start = time.perf_counter()
        for _ in numbers:
            function(*args)
        print((time.perf_counter() - start) / len(numbers) * 1e6, flush=True)
    gc.unfreeze()  # else Triton complains of leaks as the process ends


class Server:
    """A process that times the calls of one tree."""

    def __init__(self, root: Path, rows: int):
        command = [sys.executable, str(HERE), str(root), "--serve", "--rows", str(rows)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.titles = self._answer().split("|")

    def _answer(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"bench/launch/compare: a process ended with {self._process.wait()}")
        return line.rstrip("\n")

    def time(self, title: str, kind: str, calls: int) -> float:
        """Return the microseconds per call of one batch."""
        self._process.stdin.write(f"{title}|{kind}|{calls}\n")
        self._process.stdin.flush()
        return float(self._answer())


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("other", type=Path, help="another tree of this repository")
    arguments.add_argument("--rows", type=int, default=300, help="rows of the activations")
    arguments.add_argument("--batches", type=int, default=150, help="of each op, kind and tree")
    arguments.add_argument("--calls", type=int, default=10, help="calls a batch")
    arguments.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.serve:
        serve(given.other.resolve(), given.rows)
        return
    now, before = Server(HERE.parents[2], given.rows), Server(given.other.resolve(), given.rows)
    titles = [t for t in now.titles if t in before.titles]
    fastest: dict[tuple, float] = {}
    for turn in range(given.batches):
        for title in titles:
            for kind in KINDS:
                for server in (now, before) if turn % 2 else (before, now):
                    taken = server.time(title, kind, given.calls)
                    key = title, kind, server
                    fastest[key] = min(taken, fastest.get(key, taken))
    print("| op | planned, µs | before | replayed, µs | before |\n| --- | --- | --- | --- | --- |")
    for title in titles:
        row = [f"{fastest[title, kind, server]:.0f}" for kind in KINDS for server in (now, before)]
        print(f"| {title} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
