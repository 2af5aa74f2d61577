"""The options that decide layer by layer, a part of Settings."""

from dataclasses import dataclass

from ...formats.choose import granularities, granularity_name, options
from .values import FLOAT16, block_edge, option, plain_format


@dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """Which layers are stored how. `layer_rules` says in which order they count."""

    layer_config: str | None = option(
        None,
        "--layer-config",
        "--layer_config",
        group="layers",
        metavar="FILE",
        help="JSON: regular expressions for whole layer names, each with the settings of its layers",
    )
    exclude_layers: str | None = option(
        None,
        "--exclude-layers",
        "--exclude_layers",
        group="layers",
        metavar="REGEX",
        help="leave layers alone whose name (without .weight) holds a match",
    )
    custom_layers: str | None = option(
        None,
        "--custom-layers",
        "--custom_layers",
        group="layers",
        metavar="REGEX",
        help="store layers whose name holds a match as the --custom options say, kept ones too",
    )
    custom_type: str | None = option(
        None,
        "--custom-type",
        "--custom_type",
        group="layers",
        metavar="|".join((*options(), FLOAT16)),
        type=plain_format,
        help="format of the --custom-layers (default int8)",
    )
    custom_scaling_mode: str | None = option(
        None,
        "--custom-scaling-mode",
        "--custom_scaling_mode",
        group="layers",
        metavar="|".join(granularities()),
        type=granularity_name,
        help="scales of the --custom-layers, where they differ from --scaling_mode",
    )
    custom_block_size: int | None = option(
        None,
        "--custom-block-size",
        "--custom_block_size",
        group="layers",
        metavar="N",
        type=block_edge,
        help="block edge of the --custom-layers, where it differs from --block_size",
    )
    custom_simple: bool = option(
        False,
        "--custom-simple",
        "--custom_simple",
        group="layers",
        action="store_true",
        help="round the --custom-layers to nearest, whatever the algorithm of the others",
    )
    fallback: str | None = option(
        None,
        "--fallback",
        group="layers",
        metavar="|".join((*options(), FLOAT16)),
        type=plain_format,
        help="format of layers to quantize that no pattern names (default: --format)",
    )
    heur: bool = option(
        False,
        "--heur",
        group="layers",
        action="store_true",
        help="skip layers too small or too awkward for INT8 to pay: see converter/layers/heuristics.py",
    )
    full_precision_matrix_mult: bool = option(
        False,
        "--full_precision_matrix_mult",
        "--full-precision-matrix-mult",
        group="layers",
        action="store_true",
        help="write that flag into comfy_quant; ComfyUI reads it and ignores it for INT8",
    )
