"""The prompts that a model is run on: a person's own, or a built-in list of many kinds of text."""

import os
from collections.abc import Sequence
from pathlib import Path

from ...files.regular import open_regular
from ...formats.errors import CheckpointError, ConversionError

BUILT_IN = Path(__file__).with_name("prompts.txt")
"""One prompt a line, one kind after the other: photographs, paintings, drawings, lettering and graphics,
things and rooms, composition, motion, other languages, prose of several trades, code."""

_LARGEST = 16 << 20


def read_prompts(path: Path | None) -> list[str]:
    """Return the lines of a text file that are not blank, None for the built-in list.

    ConversionError for a file that is not there, is no UTF-8 text, or has no prompt.
    """
    path = path or BUILT_IN
    try:
        with os.fdopen(open_regular(path), "rb") as f:
            raw = f.read(_LARGEST + 1)
        text = raw.decode("utf-8-sig")
    except CheckpointError as e:
        raise ConversionError(f"--prompts {e}") from e
    except UnicodeDecodeError as e:
        raise ConversionError(f"--prompts {path} is no UTF-8 text; give a file with one prompt a line") from e
    if len(raw) > _LARGEST:
        raise ConversionError(f"--prompts {path} is larger than {_LARGEST >> 20} MiB; give fewer prompts")
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise ConversionError(f"--prompts {path} holds no prompt; give a file with one prompt a line")
    return found


def spread(prompts: Sequence[str], count: int | None) -> list[str]:
    """Return `count` of the prompts, evenly over the list; all of them for None, or where there are fewer."""
    if count is None or count >= len(prompts):
        return list(prompts)
    return [prompts[i * len(prompts) // count] for i in range(count)]
