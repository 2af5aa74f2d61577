"""Which LoRAs are merged into which model of a batch.

::

    {
      "flux-dev.safetensors": ["style.safetensors", "detail.safetensors"],
      "qwen*": {"loras": ["light.safetensors"], "scale": 0.8, "dampen": false},
      "plain.safetensors": []
    }

A key is a model's file name or a glob; the first that fits a model is the one for it. LoRA paths start at the
map's own folder. Models that no key fits get the LoRAs of the command line.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ...files.regular import read_json
from ...files.schema import number, optional, record, truth
from ...formats.config import shown
from ...formats.errors import CheckpointError, ConversionError
from ..options.values import closest


@dataclass(frozen=True)
class LoraChoice:
    """The LoRAs of one model, in order. None: as the command line says."""

    paths: tuple[str, ...]
    scale: float | None = None
    dampen: bool | None = None


@dataclass(frozen=True)
class LoraMap:
    """Model names or globs, each with its LoRAs."""

    path: str = ""
    entries: Mapping[str, LoraChoice] = field(default_factory=dict)

    def options(self, model: str) -> dict[str, Any]:
        """Return the options of Settings that the map changes for the model of this file name."""
        choice = next((c for key, c in self.entries.items() if fnmatchcase(model, key)), None)
        if choice is None:
            return {}
        changed: dict[str, Any] = {"merge_lora_path": None, "merge_lora_paths": choice.paths}
        if choice.scale is not None:
            changed["merge_lora_scale"] = choice.scale
        if choice.dampen is not None:
            changed["merge_lora_dampen"] = choice.dampen
        return changed

    def require_use(self, models: Sequence[str]) -> None:
        """Raise ConversionError, naming the nearest model, when a key fits none of `models`."""
        for key in self.entries:
            if not any(fnmatchcase(model, key) for model in models):
                near = closest(key, models)
                raise ConversionError(
                    f"--lora-map {self.path}: {key!r} is the name of no model here; the nearest is {near!r}"
                )


def read_lora_map(path: str) -> LoraMap:
    """Read a map. ConversionError for a file that is none, an unknown field, or a LoRA that is not there."""
    try:
        found = read_json(path)
    except ConversionError as e:
        raise ConversionError(f"--lora-map {e}") from e
    if not isinstance(found, dict):
        raise ConversionError(f"--lora-map {path}: a JSON object is expected, with model names as its keys")
    folder = Path(path).parent
    return LoraMap(path, {key: _choice(v, folder, f"--lora-map {path}: {key!r}") for key, v in found.items()})


def _loras(value: Any, where: str) -> list[str]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise CheckpointError(f"{where}: a list of LoRA files is expected, not {shown(value)}")
    return listed


_ENTRY = record(
    {"loras": _loras, "scale": optional(number()), "dampen": optional(truth())}, required=("loras",)
)


def _choice(value: Any, folder: Path, where: str) -> LoraChoice:
    entry = _ENTRY(value if isinstance(value, dict) else {"loras": value}, where)
    paths = tuple(str(folder / name) for name in entry["loras"])
    for lora in paths:
        if not os.path.isfile(lora):  # false, too, for a name that no file can have
            raise ConversionError(f"{where}: {lora:.300}: no such file; paths start at the map's own folder")
    return LoraChoice(paths, entry.get("scale"), entry.get("dampen"))
