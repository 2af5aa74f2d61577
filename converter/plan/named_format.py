"""An output whose name says another format than it would hold is refused: people choose files by name."""

from __future__ import annotations

import re
from pathlib import Path

from ...formats.choose import options
from ...formats.errors import ConversionError
from .steps import Plan

_WORDS = {
    "int8": r"int8|i8",
    "fp8": r"fp8|f8|float8|e4m3|e5m2",
    "nvfp4": r"nvfp4|fp4",
    "mxfp8": r"mxfp8",
    "int4": r"int4|nf4",
    "w4a8": r"w4a8",
    "w6a8": r"w6a8",
    "w4a4": r"w4a4",
}
_WORD = re.compile(
    r"(?<![a-z0-9])(?:" + "|".join(f"(?P<{name}>{words})" for name, words in _WORDS.items()) + r")(?![0-9])"
)


def require_honest_name(path: Path, plan: Plan) -> None:
    """Raise ConversionError when the name of an output tells of formats, and of none that it will hold."""
    said = [(m.group(), str(m.lastgroup)) for m in _WORD.finditer(path.stem.lower())]
    forms = [s.format for s in plan.quantized if s.format]
    held = {word for f in forms for word in (f.kind().lower(), f.name, *f.tag().split("_"))}
    if not said or any(word in held or text in held for text, word in said):
        return
    written = " and ".join(dict.fromkeys(f.kind().lower() for f in forms))
    text, word = said[0]
    remedy = f"ask for it with --format {word}, or " if word in options() else ""
    raise ConversionError(
        f"{path}: the name says {text}, and its layers would be {written}: {remedy}give it another name "
        "with -o"
    )
