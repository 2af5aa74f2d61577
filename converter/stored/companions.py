"""Layers that arrive already quantized (FP8 with a scale, INT8): which tensors belong together.

Seen in the wild: ``X.weight_scale`` + ``X.comfy_quant`` (ComfyUI now), ``X.scale_weight`` /
``X.scale_input`` + a ``scaled_fp8`` marker (ComfyUI before), the same layers named only in the header's
``_quantization_metadata``, and FP8 weights with no scale at all.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ...files.checkpoint import Checkpoint
from ...formats.errors import ConversionError
from ..contract import CONFIG, FLOAT8_FORMATS, INPUT_SCALE, METADATA_KEY, SCALE

MARKER = "scaled_fp8"
_SCALES = (SCALE, ".scale_weight")
_INPUT_SCALES = (INPUT_SCALE, ".scale_input")
_FORMATS = dict(FLOAT8_FORMATS)


@dataclass(frozen=True)
class StoredQuant:
    """The companions of a stored quantized weight: source names, "" where there is none."""

    scale: str
    input_scale: str
    config: str
    config_json: str

    def names(self) -> list[str]:
        """The source tensors that only make sense beside this weight."""
        return [n for n in (self.scale, self.input_scale, self.config) if n]


def stored_quant(checkpoint: Checkpoint, weight: str) -> StoredQuant | None:
    """The companions of `weight` if it is stored quantized, else None."""
    tensors = checkpoint.tensors
    layer = weight.removesuffix(".weight")
    info = tensors[weight]
    if info.dtype not in ("I8", "U8", *_FORMATS):
        return None

    def first(suffixes: tuple[str, ...]) -> str:
        return next((layer + s for s in suffixes if layer + s in tensors), "")

    config = layer + CONFIG if layer + CONFIG in tensors else ""
    listed = _listed(checkpoint.metadata).get(layer)
    text = json.dumps(listed) if listed else ""
    scale = first(_SCALES)
    if not text and info.dtype in _FORMATS and scale:
        text = json.dumps({"format": _FORMATS[info.dtype], **_marked(checkpoint)})
    if info.dtype not in _FORMATS and not (config or text):
        return None
    return StoredQuant(scale, first(_INPUT_SCALES), config, "" if config else text)


def is_marker(name: str) -> bool:
    """Whether a tensor is the old marker of FP8 files, which today's ``comfy_quant`` replaces."""
    return name == MARKER or name.endswith(f".{MARKER}")


def _marked(checkpoint: Checkpoint) -> dict[str, bool]:
    """What the old marker says of every layer: with two elements, to multiply in full precision."""
    full = any(is_marker(name) and info.numel == 2 for name, info in checkpoint.tensors.items())
    return {"full_precision_matrix_mult": True} if full else {}


def _listed(metadata: Mapping[str, str]) -> dict:
    """The layers of the header's ``_quantization_metadata``."""
    raw = metadata.get(METADATA_KEY)
    if not raw:
        return {}
    try:
        layers = json.loads(raw)["layers"]
        return layers if isinstance(layers, dict) else {}
    except (ValueError, KeyError, TypeError) as e:
        raise ConversionError(f"the header's {METADATA_KEY} is not valid: {e}") from e


def standard_name(name: str) -> str:
    """Today's name of a companion tensor: ``scale_weight`` becomes ``weight_scale``."""
    for old, new in ((".scale_weight", SCALE), (".scale_input", INPUT_SCALE)):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
