"""Another tool has our import name and our commands: notice it, and say what to do.

``pip install convert_to_quant`` brings that tool. Its files go into the same folder of site-packages
as ours and replace those of the same name; installed beside a checkout, whichever comes first on
``sys.path`` hides the other.
"""

import os
import sys
import warnings

from .version import DISTRIBUTION

_ONLY_THEIRS = "convert_to_quant.py"  # holds the main function of each of its releases, 1.0.1 to 1.3.4
_warned = False


def found() -> str | None:
    """Return the folder that holds the other tool's files, or None: one stat per entry of ``sys.path``."""
    here = os.path.dirname(os.path.abspath(__file__))
    others = (os.path.join(entry, "convert_to_quant") for entry in sys.path if isinstance(entry, str))
    for folder in (here, *others):
        if os.path.isfile(os.path.join(folder, _ONLY_THEIRS)):
            return folder
    return None


def message() -> str | None:
    """Return what a user should know about the other tool's files, or None where there are none."""
    folder = found()
    if folder is None:
        return None
    return (
        f"two tools named convert_to_quant are installed here: {folder} holds files of the one that "
        f"'pip install convert_to_quant' brings, and this one is {DISTRIBUTION}. They have the same import "
        "name and commands, so each overwrites or hides files of the other, and neither can be relied on. "
        f"Keep one per environment: run 'pip uninstall convert_to_quant {DISTRIBUTION}', then install the "
        "one you want again."
    )


def warn() -> None:
    """Warn once per process when the other tool's files are found."""
    global _warned
    if _warned:
        return
    _warned = True
    text = message()
    if text is not None:
        warnings.warn(text, stacklevel=3)
