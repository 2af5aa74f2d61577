"""Names and shapes of real checkpoints, for the tests of presets and selection.

``tests/data/catalogs`` holds a few models cut down to two blocks. The full set is
used where it is found: the folder named by the environment variable CTQ_CATALOGS,
else ``../shared/catalogs`` beside the repository.
"""

import json
import math
import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = Path(__file__).parents[1] / "data" / "catalogs"
FULL = Path(os.environ.get("CTQ_CATALOGS") or REPOSITORY.parent / "shared" / "catalogs")
FACTS = ("fingerprints", "keep_high_precision")

needs_catalogs = pytest.mark.skipif(
    not FULL.is_dir(), reason=f"no catalogs in {FULL}; set CTQ_CATALOGS to their folder"
)


def names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.json") if path.stem not in FACTS)


def each(folder: Path):
    """Parametrize a test over the catalogs of a folder, readable ids included."""
    found = names(folder) or [pytest.param("none", marks=pytest.mark.skip(reason=f"no catalogs in {folder}"))]
    return pytest.mark.parametrize("name", found)


def facts(name: str) -> dict:
    return json.loads((FULL / f"{name}.json").read_text())["families"]


def load(folder: Path, name: str) -> tuple[dict, dict[str, tuple[int, ...]]]:
    """A catalog's description, and its shapes with the repeated blocks written out."""
    catalog = json.loads((folder / f"{name}.json").read_text())
    shapes = {key: _shape(entry) for key, entry in catalog["tensors"].items()}
    for repeat in catalog.get("repeat", ()):
        for first, last in repeat["i"]:
            for index in range(first, last + 1):
                for suffix, entry in repeat["tensors"].items():
                    shapes[f"{repeat['prefix']}{index}.{suffix}"] = _shape(entry)
    return catalog, shapes


def write_hollow(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "BF16") -> Path:
    """A checkpoint with this header whose data is a hole: gigabytes by its size, a header on the disk."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape) * {"BF16": 2, "F32": 4}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + at)
    return path


def _shape(entry: list) -> tuple[int, ...]:
    """``[3072, 64]``, or ``["bf16", [3072, 64]]``."""
    return tuple(entry[1] if entry and isinstance(entry[0], str) else entry)
