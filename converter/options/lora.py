"""The options of the LoRA merge, a part of Settings."""

from dataclasses import dataclass
from os import PathLike

from .values import finite, option, switch

DEFAULT_RANK = 32


def lora_rank(value: str | int) -> int:
    """Return a rank from 1 to 1024, DEFAULT_RANK for True; else ValueError."""
    rank = DEFAULT_RANK if value is True else int(value)
    if not 1 <= rank <= 1024:
        raise ValueError(f"the rank of a LoRA must be from 1 to 1024, not {value}")
    return rank


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Which LoRAs are merged into the weights, and how strongly; the LoRA of what quantization lost."""

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
        help="merge these LoRAs into the weights, in this order",
    )
    merge_lora_scale: float = option(
        1.0,
        "--merge-lora-scale",
        "--merge_lora_scale",
        group="lora",
        metavar="S",
        type=finite,
        help="strength at which LoRAs are merged (default 1)",
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
        help="merge each further LoRA at 0.9 of the strength of the one before: 1, 0.9, 0.81, ... (default "
        "true)",
    )
    extract_lora: int | None = option(
        None,
        "--extract-lora",
        "--extract_lora",
        group="lora",
        metavar="RANK",
        nargs="?",
        const=True,
        type=lora_rank,
        help="also write what quantization lost of each layer, as a LoRA of this rank (default 32); it helps "
        "where a LoRA is applied beside the weights (in ComfyUI: Load LoRA (Bypass))",
    )
    lora_target: str | None = option(
        None,
        "--lora-target",
        "--lora_target",
        group="lora",
        metavar="REGEX",
        help="only for layers whose name has a match (default: all)",
    )
    lora_output: str | None = option(
        None,
        "--lora-output",
        "--lora_output",
        group="lora",
        metavar="FILE",
        help="the file that --extract-lora writes (default: beside the output)",
    )


def paths_as_text(settings: LoraOptions) -> None:
    """Make LoRA files texts in a tuple: people give Path objects, and a single one by itself."""
    one, given = settings.merge_lora_path, settings.merge_lora_paths
    several = (str(given),) if isinstance(given, str | PathLike) else tuple(map(str, given or ()))
    object.__setattr__(settings, "merge_lora_path", None if one is None else str(one))
    object.__setattr__(settings, "merge_lora_paths", several)
