"""The options of the LoRA merge, a part of Settings."""

from dataclasses import dataclass
from os import PathLike

from .values import finite, option, switch


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Which LoRAs are merged into the weights, and how strongly."""

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


def paths_as_text(settings: LoraOptions) -> None:
    """Make LoRA files texts in a tuple: people give Path objects, and a single one by itself."""
    one, given = settings.merge_lora_path, settings.merge_lora_paths
    several = (str(given),) if isinstance(given, str | PathLike) else tuple(map(str, given or ()))
    object.__setattr__(settings, "merge_lora_path", None if one is None else str(one))
    object.__setattr__(settings, "merge_lora_paths", several)
