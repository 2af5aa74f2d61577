"""The options that decide layer by layer, a part of Settings."""

from dataclasses import dataclass

from ...formats.choose import granularities, granularity_name, options
from .values import FLOAT16, block_edge, option, plain_format


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
    fallback: str | None = option(
        None,
        "--fallback",
        group="layers",
        metavar="|".join((*options(), FLOAT16)),
        type=plain_format,
        help="format of the quantized layers that no pattern above names (default: that of --format)",
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
