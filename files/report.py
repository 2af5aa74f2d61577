"""Report files, JSON and HTML: a new one replaces an older report of this program, and no other file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..formats.errors import ConversionError
from ..version import VERSION
from .atomic import new_file
from .regular import open_regular
from .target import require_target

_NAME = "convert_to_quant"
_HEAD = f'{{\n "made_by": "{_NAME} '.encode("ascii")
_TAIL = f"<!-- made by {_NAME} ".encode("ascii")


def require_report(
    path: str | os.PathLike[str] | None, inputs: Iterable[str | os.PathLike[str]] = ()
) -> None:
    """Refuse a place for a report before there is work to lose; None is no report.

    ConversionError as `require_target`, and for a file that is no report of this program.
    """
    if path is None:
        return
    path = require_target(Path(path), inputs, "report")
    if path.exists() and not _is_report(path):
        raise ConversionError(
            f"{path}: exists and is no report of this program, and only those are replaced; name another file"
        )


def _is_report(path: Path) -> bool:
    """Tell a report by its first or its last bytes; an empty file is nobody's."""
    with os.fdopen(open_regular(path), "rb") as f:
        head = f.read(len(_HEAD))
        size = os.fstat(f.fileno()).st_size
        f.seek(max(0, size - 100))
        return size == 0 or head == _HEAD or _TAIL in f.read()


def save_json(
    path: str | os.PathLike[str], content: Mapping[str, Any], inputs: Iterable[str | os.PathLike[str]] = ()
) -> None:
    """Write a report's plain JSON values, whole or not at all; errors as `require_report`."""
    _save(path, json.dumps({"made_by": f"{_NAME} {VERSION}", **content}, indent=1) + "\n", inputs)


def save_html(path: str | os.PathLike[str], page: str, inputs: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Write a report's page, whole or not at all; errors as `require_report`."""
    _save(path, f"{page}<!-- made by {_NAME} {VERSION} -->\n", inputs)


def _save(path: str | os.PathLike[str], text: str, inputs: Iterable[str | os.PathLike[str]]) -> None:
    require_report(path, inputs)
    try:
        with new_file(Path(path), inputs) as f:
            f.write(text.encode("utf-8", "backslashreplace"))
    except OSError as e:
        raise ConversionError(f"{path}: cannot be written: {e.strerror or e}") from e
