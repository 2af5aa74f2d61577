"""English text that every Python with this project's dependencies has at hand, offline.

Calibration: the Python language reference (`pydoc_data.topics`), but for its last tenth, which is text of the
same kind to measure on. Other kinds: the docstrings of NumPy and torch; farther away the licences that these
two come with, and `ctq calibrate`'s own prompts. Paragraphs that are mostly code, tables or numbers are left
out.
"""

import bisect
import itertools
import re
from collections.abc import Iterator
from importlib.metadata import files

from convert_to_quant.converter.recording.prompts import read_prompts

SOURCES = {
    "train": "the Python language reference (pydoc_data.topics)",
    "reference": "the rest of the language reference",
    "eval": "the docstrings of NumPy and torch",
    "licences": "the licence texts that NumPy and torch come with",
    "prompts": "the built-in prompts of ctq calibrate",
}

_TRAINING = 0.9
"""Part of the language reference's characters that may be calibrated on."""


def paragraphs(split: str) -> list[str]:
    """Return paragraphs of prose of one of SOURCES, in a fixed order, each once; prompts as they are."""
    if split == "prompts":
        return read_prompts(None)
    texts = {"eval": _docstrings, "licences": _licences}.get(split, _reference)()
    found = (re.sub(r"\s+", " ", p).strip() for text in texts for p in re.split(r"\n\s*\n", text))
    prose = list(dict.fromkeys(p for p in found if _is_prose(p)))
    if split not in ("train", "reference"):
        return prose
    ends = list(itertools.accumulate(len(p) for p in prose))
    cut = bisect.bisect(ends, ends[-1] * _TRAINING)
    return prose[:cut] if split == "train" else prose[cut:]


def _is_prose(paragraph: str) -> bool:
    letters = sum(c.isalpha() or c == " " for c in paragraph)
    return len(paragraph) >= 60 and letters >= 0.88 * len(paragraph) and ">>>" not in paragraph


def _reference() -> Iterator[str]:
    from pydoc_data import topics

    yield from (topics.topics[name] for name in sorted(topics.topics))


def _licences() -> Iterator[str]:
    for package in ("torch", "numpy"):
        for file in sorted(files(package) or (), key=str):
            if file.name.startswith("LICENSE"):
                yield file.locate().read_text(errors="ignore")


def _docstrings() -> Iterator[str]:
    import numpy
    import torch

    for module in (numpy, numpy.linalg, numpy.random, torch, torch.nn, torch.nn.functional, torch.optim):
        for name in sorted(vars(module)):
            doc = getattr(getattr(module, name), "__doc__", None)
            if isinstance(doc, str) and not name.startswith("_"):
                yield doc
