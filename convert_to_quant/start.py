"""The programs' entry points: they import the command line where a failing import is told in one line."""

import gc
import importlib
import sys

_YOUNG = 100_000
"""New objects after which Python looks for garbage, 700 by default: torch makes a million that stay."""


def main() -> int:
    """Run ``convert_to_quant`` or ``ctq``; returns the exit code."""
    return _run("converter.cli.main")


def calibrate() -> int:
    """Run ``calibrate_activation_scales``; returns the exit code."""
    return _run("converter.cli.calibrate")


def _run(module: str) -> int:
    gc.set_threshold(_YOUNG)
    try:
        code = importlib.import_module(f"convert_to_quant.{module}").main()
    except (ImportError, OSError, MemoryError) as e:
        print(f"error: the program cannot be loaded: {_first_cause(e)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        gc.freeze()  # the process ends: its last look through what torch made frees nothing that anyone needs
    return int(code)


def _first_cause(error: BaseException) -> str:
    """Return in one line what an import failed for: numpy puts two dozen lines of advice around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
