"""English text that every Python with this project's dependencies has at hand, offline.

Calibration: the Python language reference (`pydoc_data.topics`). Evaluation: the docstrings of NumPy and
torch. Paragraphs that are mostly code, tables or numbers are left out.
"""

import re
from collections.abc import Iterator

SOURCES = {
    "train": "the Python language reference (pydoc_data.topics)",
    "eval": "the docstrings of NumPy and torch",
}


def paragraphs(split: str) -> list[str]:
    """Return paragraphs of prose of "train" or "eval", in a fixed order, each once."""
    texts = _reference() if split == "train" else _docstrings()
    found = (re.sub(r"\s+", " ", p).strip() for text in texts for p in re.split(r"\n\s*\n", text))
    return list(dict.fromkeys(p for p in found if _is_prose(p)))


def _is_prose(paragraph: str) -> bool:
    letters = sum(c.isalpha() or c == " " for c in paragraph)
    return len(paragraph) >= 60 and letters >= 0.88 * len(paragraph) and ">>>" not in paragraph


def _reference() -> Iterator[str]:
    from pydoc_data import topics

    yield from (topics.topics[name] for name in sorted(topics.topics))


def _docstrings() -> Iterator[str]:
    import numpy
    import torch

    for module in (numpy, numpy.linalg, numpy.random, torch, torch.nn, torch.nn.functional, torch.optim):
        for name in sorted(vars(module)):
            doc = getattr(getattr(module, name), "__doc__", None)
            if isinstance(doc, str) and not name.startswith("_"):
                yield doc
