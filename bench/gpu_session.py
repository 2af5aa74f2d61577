"""The first run on a card, in stages that fit commands of a few minutes and lose nothing when cut off.

    python bench/gpu_session.py smoke prove warm exact --out DIR --budget 500
    python bench/gpu_session.py tune table --out DIR --budget 500 --wheels FOLDER
    python bench/gpu_session.py sweep --out DIR --budget 400
    TRITON_INTERPRET=1 python bench/gpu_session.py smoke prove exact --tiny --device cpu --out DIR     no GPU

Every measurement is a line of JSON in DIR/session.jsonl at once, and is not made again by a later command
with the same DIR. No network is needed: rivals that are not installed are taken from a folder of wheels.

smoke: versions, and one fused linear against its twin. prove: engines with barriers of their own, in a
process that may hang; the others run only what was right there. warm: every candidate compiled, in parallel
processes. exact: every candidate bit for bit, at real and ragged sizes up to more than 2**31 elements.
tune: the tuner's choices with all their times (copied to DIR). table: ours and rivals, with floors.
sweep: tiles beyond the tables.
"""

import argparse
import importlib
import os
import sys
import zipfile
from pathlib import Path

from gpu_record import Session

BENCH = Path(__file__).resolve().parent
sys.path.insert(0, str(BENCH / "kernels"))


def unpack(wheels: Path, into: Path) -> None:
    """Make the packages of a folder of wheels importable, after what is installed."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(into)
    sys.path.append(str(into))


def repair_interpreter() -> None:
    """Have Triton's interpreter round to bfloat16, which it truncates to; nothing without it."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.path.append(str(BENCH.parent / "tests" / "kernels" / "interpreter"))
        importlib.import_module("bfloat16").repair()


def main() -> int:
    """Run the stages named on the command line; the exit code is 1 when something was wrong."""
    import gpu_stages

    repair_interpreter()
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("stages", nargs="+", choices=gpu_stages.STAGES)
    arguments.add_argument("--out", type=Path, required=True, help="folder of the record")
    arguments.add_argument("--budget", type=float, default=500, help="seconds for this command")
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--tiny", action="store_true", help="toy shapes: exercises the code only")
    arguments.add_argument("--wheels", type=Path, help="folder of wheels with rivals")
    given = arguments.parse_args()
    if given.wheels:
        unpack(given.wheels, given.out / "rivals")
    session = Session(given.out, given.device, given.budget, given.tiny)
    for stage in given.stages:
        gpu_stages.STAGES[stage](session)
    return int(any(row.get("wrong") for row in session.rows()))


if __name__ == "__main__":
    sys.path.insert(0, str(BENCH))
    sys.exit(main())
