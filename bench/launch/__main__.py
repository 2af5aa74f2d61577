"""Host time of one call of each op: what the processor spends before the GPU has its work.

    python bench/launch            no GPU needed: Triton's launcher over a driver that runs nothing
    python bench/launch --rows 16

"planned" is a call that checks its arguments, chooses its tile and lets Triton bind them, as every
call does with CONVERT_TO_QUANT_REPLAY=0; "replayed" is what every later call of the same shapes costs.
A GPU waits whenever its own work on a call takes less than this. Not counted: the CUDA driver's own
launch (2 to 4 microseconds each) and allocator.
"""

import argparse
import os
import sys
import time
from functools import partial
from statistics import median

import stub
import torch

SIDE = 512
"""N and K. The host's work does not depend on them, but tensor-wise scales also call PyTorch's own
operations, which the stub's processor really runs."""


def microseconds(call, rounds: int, repeats: int) -> float:
    """Median over `repeats` of the mean of `rounds` calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(rounds):
            call()
        times.append((time.perf_counter() - start) / rounds * 1e6)
    return median(times)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--family", default="sm90", choices=("sm80", "sm90"))
    arguments.add_argument("--rows", type=int, default=300, help="rows of the activations")
    arguments.add_argument("--rounds", type=int, default=200, help="calls a repeat")
    arguments.add_argument("--repeats", type=int, default=7)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    try:
        stub.install(given.family)
    except stub.NoCompiler as error:
        print(f"bench/launch: {error}", file=sys.stderr)
        return 1
    print(f"torch {torch.__version__}, triton {stub.triton.__version__}, {given.family}, M = {given.rows}")
    print("| op | planned, µs | replayed, µs | times |\n| --- | --- | --- | --- |")
    for title, (op, args) in stub.calls(given.rows, SIDE, SIDE).items():
        call = partial(stub.launcher(op), *args)
        call()  # compiles
        times = []
        for setting in ("0", "1"):
            os.environ["CONVERT_TO_QUANT_REPLAY"] = setting
            times.append(microseconds(call, given.rounds, given.repeats))
        print(f"| {title} | {times[0]:.0f} | {times[1]:.0f} | {times[0] / times[1]:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
