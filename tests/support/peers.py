"""Other programs' packages, for the tests that run beside them."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def peer(name: str):
    """Import `name`, or skip.

    With the repository's root on the path (``python -m pytest`` in a checkout) transformers would take
    the kernels folder for the package of that name; such an import is answered with "not installed".
    """
    found = importlib.util.find_spec("kernels") if "kernels" not in sys.modules else None
    if found is not None and found.origin and Path(found.origin).is_relative_to(ROOT):
        sys.modules["kernels"] = None
    return pytest.importorskip(name)
