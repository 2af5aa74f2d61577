"""What ComfyUI reads beside an INT8 weight: names, shapes and the ``comfy_quant`` JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..formats.errors import ConversionError

if TYPE_CHECKING:
    import torch

WEIGHT = ".weight"
SCALE = ".weight_scale"
CONFIG = ".comfy_quant"
INPUT_SCALE = ".input_scale"
PRE_QUANT_SCALE = ".pre_quant_scale"

TENSORWISE = "int8_tensorwise"
BLOCKWISE = "int8_blockwise"
FLOAT8_FORMATS = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}

METADATA_KEY = "_quantization_metadata"

GROUPS = (4, 16, 64, 256, 1024)
"""ConvRot group sizes that ComfyUI reads. The kernels rotate by the same ones; they are written here
too, because ``..kernels`` loads torch (2 s) and a plan must not need it. A test compares the two."""

PREFERRED_GROUPS = (256, 64, 16)
"""What automatic choice tries, best first: larger groups spread outliers further."""


def largest_group(in_features: int, groups: tuple[int, ...] = PREFERRED_GROUPS) -> int:
    """The first of `groups` that divides `in_features`, or 0 when none does."""
    return next((g for g in groups if in_features % g == 0), 0)


@dataclass(frozen=True)
class LayerFormat:
    """How one layer is stored.

    scaling: "row", "tensor" or "block"; rotation: ConvRot group or 0; block_size: edge of a block.
    """

    scaling: str = "row"
    rotation: int = 0
    block_size: int = 128
    full_precision_matrix_mult: bool = False

    @property
    def name(self) -> str:
        """The format's name in ``comfy_quant``."""
        return BLOCKWISE if self.scaling == "block" else TENSORWISE

    def config(self) -> dict[str, Any]:
        """The ``comfy_quant`` object, in the key order that ComfyUI's own saver uses."""
        out: dict[str, Any] = {"format": self.name}
        if self.scaling == "block":
            out["group_size"] = self.block_size
        if self.rotation:
            out["convrot"] = True
            out["convrot_groupsize"] = self.rotation
        if self.full_precision_matrix_mult:
            out["full_precision_matrix_mult"] = True
        return out

    def scale_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Shape of ``weight_scale``. Per tensor it is (1, 1): with () ComfyUI would requantize a
        layer per tensor after a LoRA, with (1, 1) it does so per row, which is better."""
        n, k = shape
        if self.scaling == "row":
            return n, 1
        if self.scaling == "tensor":
            return 1, 1
        return -(-n // self.block_size), -(-k // self.block_size)

    def describe(self) -> str:
        """Short text for tables: ``row + convrot 256``."""
        scaling = f"block {self.block_size}" if self.scaling == "block" else self.scaling
        return f"{scaling} + convrot {self.rotation}" if self.rotation else scaling


def encode_config(config: dict[str, Any]) -> bytes:
    """The bytes of a ``comfy_quant`` tensor: UTF-8 JSON, no padding."""
    return json.dumps(config).encode("utf-8")


def decode_config(raw: bytes, where: str) -> dict[str, Any]:
    """Parse the bytes of a ``comfy_quant`` tensor; ConversionError names `where`."""
    try:
        config = json.loads(raw.decode("utf-8"))
    except ValueError as e:
        raise ConversionError(f"{where}: not valid JSON: {e}") from e
    if not isinstance(config, dict) or not isinstance(config.get("format"), str):
        raise ConversionError(f"{where}: a JSON object with a 'format' is expected, not {config!r}")
    return config


def parse_format(config: dict[str, Any], scale_shape: tuple[int, ...], where: str) -> LayerFormat:
    """What a ``comfy_quant`` object and the scale's shape say about a layer.

    ConvRot keys may stand in "params", as ComfyUI accepts. ConversionError for another format, a
    group size that is no power of four, or a block-wise layer without "group_size".
    """
    settings = {**(config.get("params") or {}), **config}
    full = bool(settings.get("full_precision_matrix_mult", False))
    if config["format"] == BLOCKWISE:
        size = settings.get("group_size")
        if not isinstance(size, int) or size < 1 or size & (size - 1):
            raise ConversionError(f"{where}: {BLOCKWISE} needs a power-of-two 'group_size', not {size!r}")
        return LayerFormat("block", 0, size, full)
    if config["format"] != TENSORWISE:
        raise ConversionError(f"{where}: format {config['format']!r} is not an INT8 format")
    group = settings.get("convrot_groupsize", 256) if settings.get("convrot") else 0
    if group and group not in GROUPS:
        raise ConversionError(f"{where}: convrot_groupsize {group!r} is not one of {GROUPS}")
    count = 1
    for n in scale_shape:
        count *= n
    return LayerFormat("tensor" if count == 1 else "row", group, full_precision_matrix_mult=full)


def dequantize_rows(
    q: torch.Tensor, scale: torch.Tensor, layer: LayerFormat, first_row: int = 0
) -> torch.Tensor:
    """Float32 rows of a layer from its stored integers.

    q: int8 [n, K], the layer's rows from `first_row` on (a multiple of the block size for block-wise
    layers, unless it is the last part). scale: the layer's whole scale as stored.
    """
    import torch

    from ..kernels import dequantize

    n = q.shape[0]
    if layer.scaling == "row":
        scale = scale.reshape(-1, 1)[first_row : first_row + n]
    elif layer.scaling == "block":
        size = layer.block_size
        scale = scale[first_row // size : -(-(first_row + n) // size)]
    return dequantize(q, scale, torch.float32, layer.rotation)
