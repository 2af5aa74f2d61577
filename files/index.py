"""The index of a sharded checkpoint (``*.safetensors.index.json``): which file each tensor is in."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from ..formats.errors import CheckpointError
from .schema import record, table, text

ENDING = ".safetensors.index.json"

SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.safetensors")
"""What shards are called; the group is what their model is."""

_INDEX = record({"weight_map": table(text())}, required=("weight_map",), others=True)
"""An index, as far as it is read."""


def names_in_index(value: Any, where: object) -> tuple[list[str], list[str]]:
    """Return the files that an index names, sorted, and the tensors that it promises.

    where: the index, for messages. CheckpointError for what is no index, and for a file that is not in the
    index's own folder.
    """
    weight_map = _INDEX(value, f"{where}: not a safetensors index")["weight_map"]
    for tensor, name in weight_map.items():
        if not _is_inside(name):
            raise CheckpointError(
                f"{where}: weight_map names {name!r} for {tensor!r}; "
                f"a file in the index's own folder is expected"
            )
    return sorted(set(weight_map.values())), list(weight_map)


def _is_inside(name: str) -> bool:
    """Tell whether a name from a file stays in the folder it is looked up in."""
    parts = (PurePosixPath(name), PureWindowsPath(name))
    return bool(name) and "\0" not in name and not any(p.anchor or ".." in p.parts for p in parts)
