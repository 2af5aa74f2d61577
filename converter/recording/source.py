"""What a person names to be run: a folder of diffusers or transformers, or a model in the hub's cache."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...files.regular import read_json
from ...formats.errors import CheckpointError, ConversionError

Kind = Literal["pipeline", "transformers"]

PIPELINE = "model_index.json"
_MODEL = "config.json"


@dataclass(frozen=True)
class Source:
    """A folder, and which library's it is. architecture: the class that a transformers model names."""

    folder: Path
    kind: Kind
    architecture: str = ""

    def files(self) -> list[Path]:
        """Return the files that decide what the model computes, in order: weights and JSON."""
        found = (p for end in ("safetensors", "json") for p in self.folder.rglob(f"*.{end}"))
        return sorted(p for p in found if p.is_file())


def find(model: str) -> Source:
    """Return what `model` names. Nothing is downloaded.

    ConversionError for a file, a folder of neither library, one component of a pipeline, a model that is
    quantized, and an id that the hub's cache does not hold.
    """
    path = Path(model)
    if path.is_file():
        raise ConversionError(
            f"{model} is one file; what is run here is a folder of diffusers (with {PIPELINE}) or "
            f"transformers (with {_MODEL}): name that, or record in ComfyUI with the recorder node"
        )
    return _in_folder(path if path.is_dir() else _cached(model))


def _cached(model: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError as e:
        raise ConversionError(
            f"{model}: no such folder; models in the hub's cache need pip install "
            "'convert-to-quant-toolkit[diffusers]'"
        ) from e
    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as e:
        raise ConversionError(
            f"{model}: neither a folder nor a model in the hub's cache; download it first "
            f"(hf download {model}), or name its folder"
        ) from e


def _in_folder(folder: Path) -> Source:
    if (folder / PIPELINE).is_file():
        return Source(folder, "pipeline")
    if not (folder / _MODEL).is_file():
        raise ConversionError(
            f"{folder}: neither {PIPELINE} nor {_MODEL} in it; name the folder of a diffusers pipeline or of "
            "a transformers model"
        )
    try:
        config = read_json(folder / _MODEL)
    except CheckpointError as e:
        raise ConversionError(str(e)) from e
    config = config if isinstance(config, dict) else {}
    if "_class_name" in config:
        raise ConversionError(
            f"{folder}: one model of a diffusers pipeline, which runs only with the others; name the folder "
            f"that has {PIPELINE}"
        )
    if config.get("quantization_config"):
        raise ConversionError(
            f"{folder}: this model is quantized; record with the float model it was made from"
        )
    names = config.get("architectures")
    if not (isinstance(names, list) and names and isinstance(names[0], str)):
        raise ConversionError(f"{folder / _MODEL}: names no architecture; is it a transformers model?")
    return Source(folder, "transformers", names[0])
