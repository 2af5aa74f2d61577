"""Run the command line in this process and stop it once four steps are whole, whatever the machine's speed.

    python tests/support/stopped.py SIGKILL -i MODEL -o OUTPUT

The signal is sent to the process itself, by the thread that has just recorded the fourth step.
"""

import itertools
import os
import signal
import sys

from convert_to_quant.converter.cli.main import main
from convert_to_quant.files.writer import OutputFile

STEPS = 4


def stop_after(steps: int, how: signal.Signals) -> None:
    """Make the `steps`-th call of OutputFile.mark send this process a signal."""
    mark, count = OutputFile.mark, itertools.count(1)

    def counted(file, key, note):
        mark(file, key, note)
        if next(count) == steps:
            os.kill(os.getpid(), how)

    OutputFile.mark = counted


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts with "&"
    stop_after(STEPS, signal.Signals[sys.argv[1]])
    sys.exit(main(sys.argv[2:]))
