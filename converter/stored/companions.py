"""Layers that arrive already quantized (FP8 with a scale, INT8): which tensors belong together.

Seen in the wild: ``X.weight_scale`` + ``X.comfy_quant`` (ComfyUI now), ``X.scale_weight`` /
``X.scale_input`` + a ``scaled_fp8`` marker (ComfyUI before), the same layers named only in the header's
``_quantization_metadata``, and FP8 weights with no scale at all.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ...files.checkpoint import Checkpoint
from ...formats import FORMATS
from ...formats.errors import ConversionError
from ...formats.names import CONFIG, INPUT_SCALE, MARKER, METADATA_KEY, OLD_NAMES, SCALE, tensor_name


def float_formats() -> dict[str, str]:
    """Return the formats of weights that are floats, and so mean something by themselves: dtype -> name."""
    return {
        f.weight_dtype: f.name for f in FORMATS.values() if f.unlabelled and f.weight_dtype.startswith("F")
    }


def spellings(suffix: str) -> list[str]:
    """Return every suffix that a tensor may have, today's first."""
    return [suffix, *(old for old, new in OLD_NAMES.items() if new == suffix)]


@dataclass(frozen=True)
class StoredQuant:
    """The companions of a stored quantized weight: source names, "" where there is none."""

    scale: str
    input_scale: str
    config: str
    config_json: str

    def names(self) -> list[str]:
        """List the source tensors that only make sense beside this weight."""
        return [n for n in (self.scale, self.input_scale, self.config) if n]


def stored_quant(checkpoint: Checkpoint, weight: str) -> StoredQuant | None:
    """Find the companions of `weight` if it is stored quantized, else None."""
    tensors = checkpoint.tensors
    layer = weight.removesuffix(".weight")
    info = tensors[weight]
    floats = float_formats()
    if info.dtype not in ("I8", "U8", *floats):
        return None

    def first(suffix: str) -> str:
        names = (tensor_name(layer, s) for s in spellings(suffix) if s != "scale")
        return next((n for n in names if n in tensors), "")

    config = first(CONFIG)
    listed = _listed(checkpoint.metadata).get(layer)
    text = json.dumps(listed) if listed else ""
    scale = first(SCALE)
    if not text and info.dtype in floats and scale:
        text = json.dumps({"format": floats[info.dtype], **_marked(checkpoint)})
    if info.dtype not in floats and not (config or text):
        return None
    return StoredQuant(scale, first(INPUT_SCALE), config, "" if config else text)


def is_marker(name: str) -> bool:
    """Tell whether a tensor is the old marker of FP8 files, which today's ``comfy_quant`` replaces."""
    return name == MARKER or name.endswith(f".{MARKER}")


def _marked(checkpoint: Checkpoint) -> dict[str, bool]:
    """Return what the old marker says of every layer: with two elements, to multiply in full precision."""
    full = any(is_marker(name) and info.numel == 2 for name, info in checkpoint.tensors.items())
    return {"full_precision_matrix_mult": True} if full else {}


def _listed(metadata: Mapping[str, str]) -> dict:
    """Return the layers of the header's ``_quantization_metadata``."""
    raw = metadata.get(METADATA_KEY)
    if not raw:
        return {}
    try:
        layers = json.loads(raw)["layers"]
        return layers if isinstance(layers, dict) else {}
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise ConversionError(
            f"the header's {METADATA_KEY} is not valid ({e}); ctq edit writes it anew"
        ) from e


def standard_name(name: str) -> str:
    """Return today's name of a companion tensor: ``scale_weight`` becomes ``weight_scale``."""
    layer, _, suffix = name.rpartition(".")
    return tensor_name(layer, OLD_NAMES.get(suffix, suffix))
