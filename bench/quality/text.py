"""English text that every Python with this project's dependencies has at hand, offline.

Calibration: the Python language reference (`pydoc_data.topics`). Evaluation: the docstrings of NumPy and
torch; farther away the licences that these two come with, and `ctq calibrate`'s own prompts. Paragraphs that
are mostly code, tables or numbers are left out.
"""

import re
from collections.abc import Iterator
from importlib.metadata import files

from convert_to_quant.converter.recording.prompts import read_prompts

SOURCES = {
    "train": "the Python language reference (pydoc_data.topics)",
    "eval": "the docstrings of NumPy and torch",
    "licences": "the licence texts that NumPy and torch come with",
    "prompts": "the built-in prompts of ctq calibrate",
}


def paragraphs(split: str) -> list[str]:
    """Return paragraphs of prose of one of SOURCES, in a fixed order, each once; prompts as they are."""
    if split == "prompts":
        return read_prompts(None)
    texts = {"train": _reference, "eval": _docstrings, "licences": _licences}[split]()
    found = (re.sub(r"\s+", " ", p).strip() for text in texts for p in re.split(r"\n\s*\n", text))
    return list(dict.fromkeys(p for p in found if _is_prose(p)))


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
