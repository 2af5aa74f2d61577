"""Convert a model to every format that is written, and die by SIGKILL in the middle of each conversion.

    python tests/support/killed.py MODEL FOLDER

Prints, as JSON, the exit status of each case's process. Those are forks of this one, which has imported
torch for all of them and has no threads yet. The unfinished file of the case at place i is
FOLDER/i.safetensors.part.
"""

import itertools
import json
import os
import signal
import sys
from pathlib import Path

import torch
from format_cases import WRITTEN

from convert_to_quant.files.writer import OutputFile
from convert_to_quant.quantization import convert_to_int8

STEPS = 3


def die_after(steps: int) -> None:
    """Make the `steps`-th step that is recorded the last thing that this process does."""
    mark, count = OutputFile.mark, itertools.count(1)

    def counted(file, key, note):
        mark(file, key, note)
        if next(count) == steps:
            os.kill(os.getpid(), signal.SIGKILL)

    OutputFile.mark = counted


def killed(model: str, output: Path, options: dict) -> int:
    """Return the exit status of a process that converts and is killed."""
    child = os.fork()
    if child == 0:
        die_after(STEPS)
        convert_to_int8(model, output, **options)
        os._exit(0)  # it was not killed
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[2])
    found = [killed(sys.argv[1], folder / f"{i}.safetensors", c.options) for i, c in enumerate(WRITTEN)]
    print(json.dumps(found))
