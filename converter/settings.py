"""Every option of a conversion, once: name, default, flags, help.

The command line and the Python API are both made from these fields, so they cannot differ.
"""

from dataclasses import MISSING, dataclass, field, fields
from math import isfinite
from os import PathLike
from typing import Any

from .presets import KEEP_SETS

KEEP_SET_NAMES = tuple(k.name for k in KEEP_SETS)

GROUPS = {
    "main": "Main options",
    "format": "Format",
    "model": "Which model, which layers",
    "lora": "LoRA merge",
    "checks": "Checks and reports",
}
"""Help topics, in the order they are shown."""


def option(default: Any, *flags: str, help: str, group: str, **argparse: Any) -> Any:
    """A field of Settings: its default, its flags (the first is shown first), its help and topic."""
    return field(
        default=default, metadata={"flags": flags, "help": help, "group": group, "argparse": argparse}
    )


def scaling_name(text: str) -> str:
    """The granularity a user named: row (or axis), tensor, block."""
    name = {
        "axis": "row",
        "channel": "row",
        "rowwise": "row",
        "tensorwise": "tensor",
        "blockwise": "block",
    }.get(text, text)
    if name not in ("row", "tensor", "block"):
        raise ValueError(f"scaling mode must be row, tensor or block, not {text!r}")
    return name


def rotation_group(text: str | int) -> str | int:
    """A ConvRot group: "auto" or a power of four from 4 to 1024."""
    if text == "auto":
        return "auto"
    if str(text) not in ("4", "16", "64", "256", "1024"):
        raise ValueError(f"the ConvRot group size must be auto, 4, 16, 64, 256 or 1024, not {text!r}")
    return int(text)


def switch(value: str | bool) -> bool:
    """On or off, as people write it: true, 1, yes, on; false, 0, no, off."""
    text = str(value).lower()
    if text not in ("true", "1", "yes", "on", "false", "0", "no", "off"):
        raise ValueError(f"true or false is expected, not {value!r}")
    return text in ("true", "1", "yes", "on")


def finite(value: str | float) -> float:
    """A number that is not NaN or infinite."""
    number = float(value)
    if not isfinite(number):
        raise ValueError(f"a finite number is expected, not {value!r}")
    return number


def block_edge(value: str | int) -> int:
    """The edge of a block: a power of two from 16 to 1024."""
    edge = int(value)
    if not 16 <= edge <= 1024 or edge & (edge - 1):
        raise ValueError(f"the block size must be a power of two from 16 to 1024, not {value}")
    return edge


@dataclass(frozen=True)
class Settings:
    """One conversion, as asked for. See the field's help for what each means."""

    input_file: str = option(
        MISSING,
        "-i",
        "--input",
        group="main",
        metavar="PATH",
        required=True,
        help="a .safetensors file, a *.safetensors.index.json, or a folder of shards",
    )
    output_file: str | None = option(
        None,
        "-o",
        "--output",
        group="main",
        metavar="FILE",
        help="the file to write; by default beside the input, named after the format",
    )
    comfy_quant: bool = option(
        True,
        "--comfy_quant",
        "--comfy-quant",
        group="main",
        action="store_true",
        help="write what ComfyUI loads; always on, accepted because people type it",
    )
    scaling_mode: str = option(
        "row",
        "--scaling_mode",
        "--scaling-mode",
        group="format",
        metavar="row|tensor|block",
        type=scaling_name,
        help="one scale a row (default), in all, or a block; stock ComfyUI refuses block",
    )
    block_size: int = option(
        128,
        "--block_size",
        "--block-size",
        group="format",
        metavar="N",
        type=block_edge,
        help="edge of a block for --scaling_mode block: a power of two (default 128)",
    )
    convrot: bool | None = option(
        None,
        "--convrot",
        group="format",
        action="boolean",
        help="rotate weights and, at run time, activations; on by default except for block",
    )
    convrot_group_size: str | int = option(
        "auto",
        "--convrot-group-size",
        "--convrot_group_size",
        group="format",
        metavar="N|auto",
        type=rotation_group,
        help="columns rotated together; auto takes the largest of 256, 64, 16 a layer allows",
    )
    preset: str = option(
        "auto",
        "--preset",
        group="model",
        metavar="NAME|auto|none",
        help="which model this is; auto (default) recognises it from the header",
    )
    preset_strict: bool = option(
        False,
        "--preset-strict",
        "--preset_strict",
        group="model",
        action="store_true",
        help="keep per-block modulation in high precision too",
    )
    keep_sets: tuple[str, ...] = option(
        (),
        *(f"--{name}" for name in KEEP_SET_NAMES),
        group="model",
        action="append_const",
        help="names of further sets of layers to keep in high precision",
    )
    save_quant_metadata: bool = option(
        False,
        "--save-quant-metadata",
        "--save_quant_metadata",
        group="format",
        action="store_true",
        help="also list the layers in the header's _quantization_metadata",
    )
    merge_lora_path: str | None = option(
        None,
        "--merge-lora",
        "--merge_lora",
        group="lora",
        metavar="FILE",
        help="merge this LoRA into the weights before they are quantized",
    )
    merge_lora_paths: tuple[str, ...] = option(
        (),
        "--merge-loras",
        "--merge_loras",
        group="lora",
        metavar="FILE",
        nargs="+",
        help="merge these LoRAs, in this order",
    )
    merge_lora_scale: float = option(
        1.0,
        "--merge-lora-scale",
        "--merge_lora_scale",
        group="lora",
        metavar="S",
        type=finite,
        help="strength of the LoRAs (default 1)",
    )
    merge_lora_dampen: bool = option(
        True,
        "--merge-lora-dampen",
        "--merge_lora_dampen",
        group="lora",
        metavar="BOOL",
        type=switch,
        nargs="?",
        const=True,
        help="each further LoRA counts 0.9 of the one before: 1, 0.9, 0.81, ... (default true)",
    )
    verify: bool = option(
        True,
        "--no-verify",
        group="checks",
        action="store_false",
        help="skip checking every written layer against its source",
    )
    report_quality: bool = option(
        False,
        "--report-quality",
        "--report_quality",
        group="checks",
        action="store_true",
        help="measure every row, list every layer, and warn below --quality-threshold",
    )
    quality_threshold: float = option(
        30.0,
        "--quality-threshold",
        "--quality_threshold",
        group="checks",
        metavar="DB",
        type=float,
        help="weight SQNR below which --report-quality warns (default 30)",
    )
    json: str | None = option(
        None,
        "--json",
        group="checks",
        metavar="FILE",
        help="write the report as JSON",
    )

    def __post_init__(self) -> None:
        """Bring values to their standard form. ValueError for one that an option cannot have."""
        object.__setattr__(self, "keep_sets", tuple(self.keep_sets or ()))
        _paths_as_text(self)
        for f in fields(self):
            convert = f.metadata["argparse"].get("type")
            value = getattr(self, f.name)
            if convert is not None and value is not None:
                object.__setattr__(self, f.name, convert(value))

    def rotates(self) -> bool:
        """Whether layers are rotated where a group divides."""
        return self.scaling_mode != "block" if self.convrot is None else self.convrot


def _paths_as_text(settings: Settings) -> None:
    """LoRA files may be given as Path objects, and a single one without a tuple around it."""
    one, several = settings.merge_lora_path, settings.merge_lora_paths
    several = (several,) if isinstance(several, str | PathLike) else several or ()
    object.__setattr__(settings, "merge_lora_path", None if one is None else str(one))
    object.__setattr__(settings, "merge_lora_paths", tuple(str(path) for path in several))


def keywords() -> list[str]:
    """The names of all options."""
    return [f.name for f in fields(Settings)]
