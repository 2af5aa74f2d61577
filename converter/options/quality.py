"""The options that decide how the integers are chosen, and where that is computed; a part of Settings."""

from dataclasses import dataclass

from .values import algorithm_name, option

STREAMING_MODES = ("off", "minimal", "balanced", "aggressive", "auto")
DEVICES = ("auto", "cpu", "cuda", "xpu")


def streaming_mode(text: str) -> str:
    """One of STREAMING_MODES."""
    if text not in STREAMING_MODES:
        raise ValueError(f"the streaming mode must be one of {', '.join(STREAMING_MODES)}, not {text!r}")
    return text


def compute_mode(text: str) -> str:
    """auto, on or off."""
    if text not in ("auto", "on", "off"):
        raise ValueError(f"must be auto, on or off, not {text!r}")
    return text


def device_name(text: str) -> str:
    """auto, cpu, or an accelerator with an optional number (cuda:1)."""
    if text.partition(":")[0] not in DEVICES:
        raise ValueError(f"the device must be one of {', '.join(DEVICES)}, not {text!r}")
    return text


def share(value: str | float) -> float:
    """A number from 0 to 1."""
    number = float(value)
    if not 0 <= number <= 1:
        raise ValueError(f"must lie between 0 and 1, not {value}")
    return number


def positive(value: str | float) -> float:
    """A number above 0."""
    number = float(value)
    if not 0 < number < float("inf"):
        raise ValueError(f"must be a positive number, not {value}")
    return number


def count(value: str | int) -> int:
    """A whole number of at least 1."""
    number = int(value)
    if number < 1:
        raise ValueError(f"must be at least 1, not {value}")
    return number


@dataclass(frozen=True, kw_only=True)
class QualityOptions:
    """Algorithm, calibration and memory. `algorithms` says what they make of each layer."""

    optimizer: str | None = option(
        None,
        "--optimizer",
        group="quality",
        metavar="NAME",
        type=algorithm_name,
        help="quip (rotated LDLQ; the default with calibration data), ldlq or gptq (not rotated), "
        "original, adamw or radam (learned rounding), rtn (the default without)",
    )
    simple: bool = option(
        False,
        "--simple",
        group="quality",
        action="store_true",
        help="round to nearest, whatever else is given",
    )
    calibration_data: str | None = option(
        None,
        "--calibration-data",
        "--calibration_data",
        group="quality",
        metavar="FILE",
        help="recorded activations (safetensors or JSON); enables quip by default",
    )
    calib_samples: int | None = option(
        None,
        "--calib-samples",
        "--calib_samples",
        group="quality",
        metavar="N",
        type=count,
        help="use at most N tokens of each layer's record (default: all)",
    )
    calibration_lora: str | None = option(
        None,
        "--calibration-lora",
        "--calibration_lora",
        group="quality",
        metavar="FILE",
        help="a LoRA whose input directions are rounded with more care",
    )
    bias_correction: bool = option(
        False,
        "--bias-correction",
        "--bias_correction",
        group="quality",
        action="store_true",
        help="correct biases by the measured input mean; they are left alone otherwise",
    )
    static_activations: bool = option(
        False,
        "--static-activations",
        "--static_activations",
        group="quality",
        action="store_true",
        help="write input_scale from calibration (needs the node pack in ComfyUI)",
    )
    smoothquant: bool = option(
        False,
        "--smoothquant",
        group="quality",
        action="store_true",
        help="move outlier channels from activations into weights (needs the node pack in ComfyUI)",
    )
    smoothquant_alpha: float = option(
        0.5,
        "--smoothquant-alpha",
        "--smoothquant_alpha",
        group="quality",
        metavar="A",
        type=share,
        help="how much of them, 0 to 1 (default 0.5)",
    )
    scale_search: bool = option(
        False,
        "--scale-search",
        "--scale_search",
        group="quality",
        action="store_true",
        help="the scale of least squared error instead of the absmax",
    )
    quip_actorder: bool = option(
        False,
        "--quip-actorder",
        "--quip_actorder",
        group="quality",
        action="boolean",
        help="quantize the columns with the largest inputs first",
    )
    quip_seed: int = option(
        0,
        "--quip-seed",
        "--quip_seed",
        group="quality",
        metavar="N",
        type=int,
        help="seed of the tokens drawn",
    )
    quip_damping: float = option(
        0.01,
        "--quip-damping",
        "--quip_damping",
        group="quality",
        metavar="D",
        type=positive,
        help="share of the Hessian's mean diagonal added to it (default 0.01)",
    )
    num_iter: int = option(
        100,
        "--num_iter",
        "--num-iter",
        group="quality",
        metavar="N",
        type=count,
        help="steps of learned rounding (default 100)",
    )
    lr: float | None = option(
        None,
        "--lr",
        group="quality",
        metavar="R",
        type=positive,
        help="its learning rate (default: the optimizer's own)",
    )
    device: str = option(
        "auto",
        "--device",
        group="memory",
        metavar="NAME",
        type=device_name,
        help="where calibrated algorithms compute: auto (default), cpu, cuda, cuda:1, xpu",
    )
    streaming_mode: str = option(
        "auto",
        "--streaming-mode",
        "--streaming_mode",
        group="memory",
        metavar="MODE",
        type=streaming_mode,
        help="share of free device memory a layer may use: off (all), minimal, balanced, aggressive, auto",
    )
    low_memory: bool = option(
        False,
        "--low-memory",
        "--low_memory",
        group="memory",
        action="store_true",
        help="one layer at a time in memory, and --streaming-mode aggressive on the device",
    )
    quip_checkpointed: bool | None = option(
        None,
        "--quip-checkpointed",
        "--quip_checkpointed",
        group="memory",
        action="boolean",
        help="factor in place and take rows in chunks; the same bits in a quarter of the memory",
    )
    quip_checkpoint_threshold: int = option(
        8192,
        "--quip-checkpoint-threshold",
        "--quip_checkpoint_threshold",
        group="memory",
        metavar="K",
        type=count,
        help="columns from which that is the default (default 8192)",
    )
    quip_checkpoint_segments: int = option(
        4,
        "--quip-checkpoint-segments",
        "--quip_checkpoint_segments",
        group="memory",
        metavar="N",
        type=count,
        help="chunks of rows (default 4)",
    )
    bf16_compute: str = option(
        "auto",
        "--bf16-compute",
        "--bf16_compute",
        group="memory",
        metavar="auto|on|off",
        type=compute_mode,
        help="bf16 operands in the Hessian and feedback products; auto: on GPUs that have it",
    )
