"""The files that a checkpoint on this machine consists of."""

from __future__ import annotations

import os
from pathlib import Path

from ..formats.errors import CheckpointError
from .index import ENDING, names_in_index
from .mistaken import not_there
from .pickled import ENDINGS
from .regular import read_json, unreadable


def files_at(path: str | os.PathLike[str]) -> tuple[list[Path], list[str]]:
    """Return the files at a path, none of them opened, and the tensors that their index promises.

    CheckpointError, saying what is wrong and where, for a path with nothing at it, a folder without a
    checkpoint, and an index with a shard missing.
    """
    try:
        os.stat(path)
        return _files_of(Path(path))
    except FileNotFoundError as e:
        raise CheckpointError(not_there(path)) from e
    except CheckpointError:
        raise
    except (OSError, ValueError) as e:
        raise CheckpointError(unreadable(path, e)) from e


def _files_of(path: Path) -> tuple[list[Path], list[str]]:
    """Return the files of a checkpoint and the names its index promises."""
    if path.is_dir():
        indices = sorted(path.glob(f"*{ENDING}")) or sorted(path.glob("*.bin.index.json"))
        if len(indices) > 1:
            raise CheckpointError(
                f"{path}: holds {len(indices)} indices ({indices[0].name}, ...): name one of them"
            )
        if indices:
            return _files_of(indices[0])
        shards = sorted(path.glob("*.safetensors")) or sorted(path.glob("*model*.bin"))
        if not shards:
            others = [p.name for p in sorted(path.iterdir()) if p.suffix in ENDINGS]
            if others:
                raise CheckpointError(
                    f"{path}: no .safetensors file in this folder; name a file, as {others[0]}"
                )
            inner = [p.name for p in sorted(path.iterdir()) if p.is_dir() and any(p.glob("*.safetensors"))]
            hint = f"; did you mean {path / inner[0]}?" if inner else ""
            raise CheckpointError(f"{path}: no .safetensors file in this folder{hint}")
        return shards, []
    if path.suffix == ".json":
        return _read_index(path)
    return [path], []


def _read_index(path: Path) -> tuple[list[Path], list[str]]:
    names, tensors = names_in_index(read_json(path), path)
    files = [path.parent / name for name in names]
    absent = [f.name for f in files if not f.exists()]
    if absent:
        raise CheckpointError(
            f"{path}: {len(absent)} of its {len(files)} shards are missing, first {absent[0]}"
        )
    return files, tensors
