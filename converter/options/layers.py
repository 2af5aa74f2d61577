"""The options that decide layer by layer, a part of Settings."""

from dataclasses import dataclass

from ...formats.choose import granularities, granularity_name, options
from .values import FLOAT16, block_edge, nearest, option, plain_format, rotation_group

OUTPUT_DTYPES = {"bfloat16": "BF16", "float16": "F16"}
"""Values of ``--output-dtype``: each with its name in a file."""


def output_dtype(text: str) -> str:
    """Return a key of OUTPUT_DTYPES, of which `text` may be the short form; else ValueError."""
    name = {"bf16": "bfloat16", "fp16": "float16"}.get(text, text)
    if name not in OUTPUT_DTYPES:
        raise ValueError(f"there is no output dtype {text!r}; {nearest(text, OUTPUT_DTYPES)}")
    return name


@dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """Which layers are stored how. `converter.layers.rules` says in which order they count."""

    layer_config: str | None = option(
        None,
        "--layer-config",
        "--layer_config",
        group="layers",
        metavar="FILE",
        help="a JSON file with settings for layers: its keys are regular expressions that match whole layer "
        "names (see --dry-run create-template)",
    )
    exclude_layers: str | None = option(
        None,
        "--exclude-layers",
        "--exclude_layers",
        group="layers",
        metavar="REGEX",
        help="keep layers as they are whose name (without .weight) has a match of this regular expression",
    )
    custom_layers: str | None = option(
        None,
        "--custom-layers",
        "--custom_layers",
        group="layers",
        metavar="REGEX",
        help="store layers whose name has a match as the --custom options say, even those that would be kept",
    )
    custom_type: str | None = option(
        None,
        "--custom-type",
        "--custom_type",
        group="layers",
        metavar="|".join((*options(), FLOAT16)),
        type=plain_format,
        help="format of the --custom-layers (default: that of --format)",
    )
    custom_scaling_mode: str | None = option(
        None,
        "--custom-scaling-mode",
        "--custom_scaling_mode",
        group="layers",
        metavar="|".join(granularities()),
        type=granularity_name,
        help="scaling mode of the --custom-layers (default: that of --scaling_mode)",
    )
    custom_block_size: int | None = option(
        None,
        "--custom-block-size",
        "--custom_block_size",
        group="layers",
        metavar="N",
        type=block_edge,
        help="block size of the --custom-layers (default: that of --block_size)",
    )
    custom_simple: bool = option(
        False,
        "--custom-simple",
        "--custom_simple",
        group="layers",
        action="store_true",
        help="round the --custom-layers to nearest, whatever --optimizer and --calibration-data say",
    )
    custom_convrot: bool | None = option(
        None,
        "--custom-convrot",
        "--custom_convrot",
        group="layers",
        action="boolean",
        help="rotate the --custom-layers (default: as --convrot says)",
    )
    custom_convrot_group_size: str | int | None = option(
        None,
        "--custom-convrot-group-size",
        "--custom_convrot_group_size",
        group="layers",
        metavar="N|auto",
        type=rotation_group,
        help="rotation group of the --custom-layers, which are then rotated (default: that of "
        "--convrot-group-size)",
    )
    custom_heur: bool = option(
        False,
        "--custom-heur",
        "--custom_heur",
        group="layers",
        action="store_true",
        help="keep those of the --custom-layers that --heur would keep",
    )
    custom_full_precision_mm: bool = option(
        False,
        "--custom-full-precision-mm",
        "--custom_full_precision_mm",
        group="layers",
        action="store_true",
        help="mark the --custom-layers as --full_precision_matrix_mult marks all",
    )
    fallback: str | None = option(
        None,
        "--fallback",
        group="layers",
        metavar="|".join((*options(), FLOAT16)),
        type=plain_format,
        help="format of the quantized layers that no pattern above names (default: that of --format)",
    )
    fallback_block_size: int | None = option(
        None,
        "--fallback-block-size",
        "--fallback_block_size",
        group="layers",
        metavar="N",
        type=block_edge,
        help="block size of the layers that --fallback is for (default: that of --block_size)",
    )
    fallback_simple: bool = option(
        False,
        "--fallback-simple",
        "--fallback_simple",
        group="layers",
        action="store_true",
        help="round the layers that --fallback is for to nearest",
    )
    heur: bool = option(
        False,
        "--heur",
        group="layers",
        action="store_true",
        help="keep layers that INT8 makes no faster: fewer than 512 rows or 1,048,576 elements, or a number "
        "of rows that is no multiple of 8, or of columns that is none of 16",
    )
    full_precision_matrix_mult: bool = option(
        False,
        "--full_precision_matrix_mult",
        "--full-precision-matrix-mult",
        group="layers",
        action="store_true",
        help="mark layers to be multiplied in full precision; ComfyUI ignores this for INT8",
    )
    output_dtype: str | None = option(
        None,
        "--output-dtype",
        "--output_dtype",
        group="layers",
        metavar="|".join(OUTPUT_DTYPES),
        type=output_dtype,
        help="dtype of the float matrices (2-D weights) that are not quantized (default: as they are)",
    )
    preserve_layers: str | None = option(
        None,
        "--preserve-layers",
        "--preserve_layers",
        group="layers",
        metavar="REGEX",
        help="of those, leave the ones as they are whose name has a match",
    )
