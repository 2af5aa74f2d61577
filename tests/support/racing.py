"""Let processes race for one output, again and again, and print what became of each round as JSON.

    python tests/support/racing.py MODEL FOLDER ROUNDS SEED

A round: two or three processes, forked from this one so that they start together, convert MODEL in one of
three ways to one output; in some rounds one is killed on the way. Printed is a list of rounds, each with the
exit codes, the ways, what each said, the digest of the output, and the files that are left beside it.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import convert_to_quant.converter.convert.run  # noqa: F401 - loaded before the forks
from convert_to_quant.converter.cli.main import main

WAYS = ([], ["--no-convrot"], ["--scaling-mode", "tensor"])


def started(model: Path, output: Path, way: int, delay: float) -> int:
    """Fork a conversion whose words go to a file; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    log = os.open(words(output, os.getpid()), os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    time.sleep(delay)
    os._exit(main(["-i", str(model), "-o", str(output), "--quiet", *WAYS[way]]))


def words(output: Path, pid: int) -> Path:
    """Return the file of what a process says."""
    return output.parent / "words" / str(pid)


def digest(path: Path) -> str:
    """Return the digest of a file, "" for none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def race(model: Path, output: Path, chance: random.Random) -> dict:
    """Run one round."""
    ways = [chance.randrange(3) for _ in range(chance.choice([2, 3]))]
    pids = [started(model, output, way, chance.choice([0.0, 0.0, chance.random() / 5])) for way in ways]
    if chance.random() < 0.25:
        time.sleep(chance.random() / 4)
        os.kill(pids[0], signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    said = [words(output, pid).read_text() for pid in pids]
    left = sorted(p.name for p in output.parent.iterdir() if p.name.startswith(f"{output.name}."))
    return {"codes": codes, "ways": ways, "said": said, "digest": digest(output), "left": left}


if __name__ == "__main__":
    model, folder, rounds, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    (folder / "words").mkdir()
    torch.set_num_threads(1)
    chance = random.Random(seed)
    wanted = []
    for way in range(3):
        os.waitpid(started(model, folder / f"way{way}", way, 0.0), 0)
        wanted.append(digest(folder / f"way{way}"))
    found = [race(model, folder / f"q{i}", chance) for i in range(rounds)]
    print(json.dumps({"wanted": wanted, "rounds": found}))
