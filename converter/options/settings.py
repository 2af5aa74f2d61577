"""Every option of a conversion, once: name, default, flags, help.

The command line and the Python API are both made from these fields, so they cannot differ.
"""

from dataclasses import MISSING, dataclass, fields

from ...formats.algorithms import ALGORITHMS, ROUNDING
from ...formats.choose import DEFAULT, chosen, granularities, granularity_name, options
from ..presets import KEEP_SETS
from .budget import BudgetOptions
from .layers import LayerOptions
from .lora import LoraOptions, paths_as_text
from .quality import QualityOptions
from .values import block_edge, format_name, option, rotation_group

KEEP_SET_NAMES = tuple(k.name for k in KEEP_SETS)

GROUPS = {
    "main": "Main options",
    "format": "Format",
    "model": "Which model, which layers",
    "layers": "Layer by layer",
    "lora": "LoRA: merge, and what quantization lost",
    "quality": "Algorithm and calibration",
    "memory": "Devices and memory",
    "run": "Dry run and batch",
    "checks": "Checks and reports",
}
"""Help topics, in the order they are shown."""


@dataclass(frozen=True)
class Settings(LayerOptions, LoraOptions, QualityOptions, BudgetOptions):
    """One conversion, as asked for. See the field's help for what each means."""

    input_file: str = option(
        MISSING,
        "-i",
        "--input",
        group="main",
        metavar="PATH",
        required=True,
        nargs="+",
        action="extend",
        help="a .safetensors, its index, a folder, a .pth or .ckpt; org/model on the Hugging Face Hub or "
        "a URL; or several",
    )
    output_file: str | None = option(
        None,
        "-o",
        "--output",
        group="main",
        metavar="FILE",
        help="the file to write, or the folder when there are several inputs (default: beside each input)",
    )
    overwrite: bool = option(
        False,
        "--overwrite",
        group="main",
        action="store_true",
        help="replace an output that exists and is another command's",
    )
    comfy_quant: bool = option(
        True,
        "--comfy_quant",
        "--comfy-quant",
        group="main",
        action="store_true",
        help="write what ComfyUI loads: always done, but people type it",
    )
    format: str = option(
        DEFAULT,
        "--format",
        group="format",
        metavar="|".join(options()),
        type=format_name,
        help=f"storage format of the quantized layers (default {DEFAULT})",
    )
    scaling_mode: str | None = option(
        None,
        "--scaling_mode",
        "--scaling-mode",
        group="format",
        metavar="|".join(granularities()),
        type=granularity_name,
        help="what one scale is for: a weight row (row, the default), the whole weight (tensor) or a square "
        "block (block; stock ComfyUI refuses it)",
    )
    block_size: int = option(
        128,
        "--block_size",
        "--block-size",
        group="layers",
        metavar="N",
        type=block_edge,
        help="rows and columns of a block with --scaling_mode block: a power of two (default 128)",
    )
    convrot: bool | None = option(
        None,
        "--convrot",
        group="format",
        action="boolean",
        help="rotate weights now and activations at run time, so that outliers spread and rounding loses "
        "less (default: on, except with --scaling_mode block and --optimizer ldlq)",
    )
    convrot_group_size: str | int = option(
        "auto",
        "--convrot-group-size",
        "--convrot_group_size",
        group="format",
        metavar="N|auto",
        type=rotation_group,
        help="number of columns rotated together; auto (default) takes the largest of 256, 64 and 16 that "
        "divides a layer's columns",
    )
    preset: str = option(
        "auto",
        "--preset",
        group="model",
        metavar="NAME|auto|none",
        help="which model this is, and so which layers are kept: auto (default) recognises it from the "
        "file's header, none uses a general rule",
    )
    force: bool = option(
        False,
        "--force",
        group="model",
        action="store_true",
        help="quantize also what stock ComfyUI reads no quantized file of (CLIP-L, CLIP-G, ByT5), for other "
        "runtimes",
    )
    embeddings: bool = option(
        False,
        "--embeddings",
        group="model",
        action="store_true",
        help="store tables of embeddings of text encoders as INT8 rows too, rotated: ComfyUI reads them "
        "since July 2026, and fails where it offloads them",
    )
    preset_strict: bool = option(
        False,
        "--preset-strict",
        "--preset_strict",
        group="model",
        action="store_true",
        help="also keep the modulation layers of every block in high precision",
    )
    keep_sets: tuple[str, ...] = option(
        (),
        *(f"--{name}" for name in KEEP_SET_NAMES),
        group="model",
        action="append_const",
        help="names of further sets of layers to keep in high precision",
    )
    keep_names: bool = option(
        False,
        "--keep-names",
        "--keep_names",
        group="model",
        action="store_true",
        help="keep the names of a checkpoint from diffusers, for loading it with diffusers (default: write "
        "ComfyUI's names)",
    )
    save_quant_metadata: bool = option(
        False,
        "--save-quant-metadata",
        "--save_quant_metadata",
        group="checks",
        action="store_true",
        help="also list the layers in the header (_quantization_metadata)",
    )
    save_recipe: bool = option(
        False,
        "--save-recipe",
        "--save_recipe",
        group="checks",
        action="store_true",
        help="also write these options into the output's header, for ctq recipe FILE (of files, only the "
        "names)",
    )
    verify: bool = option(
        True,
        "--no-verify",
        group="checks",
        action="store_false",
        help="do not check every written layer against its source",
    )
    strict: bool = option(
        False,
        "--strict",
        group="checks",
        action="store_true",
        help="refuse, with exit code 1, what is otherwise only warned of: NaN or Inf in a tensor that is "
        "kept, and weights that become zero",
    )
    report_quality: bool = option(
        False,
        "--report-quality",
        "--report_quality",
        group="checks",
        action="store_true",
        help="measure all rows of every layer, list all layers, and warn below --quality-threshold",
    )
    quality_threshold: float = option(
        30.0,
        "--quality-threshold",
        "--quality_threshold",
        group="checks",
        metavar="DB",
        type=float,
        help="SQNR in dB, of the outputs with calibration and else of the weight, below which "
        "--report-quality warns about a layer (default 30)",
    )
    json: str | None = option(
        None,
        "--json",
        group="checks",
        metavar="FILE",
        help="also write the report to this file, as JSON",
    )

    def __post_init__(self) -> None:
        """Bring values to their standard form. ValueError for one that an option cannot have."""
        object.__setattr__(self, "keep_sets", tuple(self.keep_sets or ()))
        paths_as_text(self)
        for f in fields(self):
            convert = f.metadata["argparse"].get("type")
            value = getattr(self, f.name)
            if convert is not None and value is not None:
                object.__setattr__(self, f.name, convert(value))
        asked = ALGORITHMS[self.algorithm] if self.algorithm else None
        if asked is not None and asked.rotates and self.convrot is False:
            raise ValueError(
                f"{asked.name} is LDLQ of rotated weights; with --no-convrot ask for --optimizer ldlq"
            )
        self._check_budget()
        try:
            chosen(self.format, self.scaling_mode)
        except ValueError as e:
            raise ValueError(f"--format {self.format}: {e}") from e

    def _check_budget(self) -> None:
        """Refuse options that say nothing without the target size, or against it."""
        if self.target_size is None:
            alone = [f for f in ("min_format", "max_format") if getattr(self, f)]
            if alone:
                flag = f"--{alone[0].replace('_', '-')}"
                raise ValueError(f"{flag} bounds the formats that --target-size chooses from; give that too")
        elif self.fallback:
            raise ValueError(
                "--fallback names one format for all layers, --target-size one for each; leave one out"
            )

    @property
    def algorithm(self) -> str | None:
        """The algorithm asked for all layers; None where each layer's calibration decides."""
        return ROUNDING if self.simple else self.optimizer


def keywords() -> list[str]:
    """Return the names of all options."""
    return [f.name for f in fields(Settings)]
