"""The options that decide how the integers are chosen, and where that is computed; a part of Settings."""

from dataclasses import dataclass

from ...formats.algorithms import help_text
from ...formats.work import DAMPING
from .values import algorithm_name, option

STREAMING_MODES = ("off", "minimal", "balanced", "aggressive", "auto")
DEVICES = ("auto", "cpu", "cuda", "xpu")


def streaming_mode(text: str) -> str:
    """Return `text`, one of STREAMING_MODES; else ValueError."""
    if text not in STREAMING_MODES:
        raise ValueError(f"the streaming mode must be one of {', '.join(STREAMING_MODES)}, not {text!r}")
    return text


def compute_mode(text: str) -> str:
    """Return `text`, which is auto, on or off; else ValueError."""
    if text not in ("auto", "on", "off"):
        raise ValueError(f"must be auto, on or off, not {text!r}")
    return text


def device_name(text: str) -> str:
    """Return `text`: auto, cpu, or an accelerator with an optional number (cuda:1); else ValueError."""
    if text.partition(":")[0] not in DEVICES:
        raise ValueError(f"the device must be one of {', '.join(DEVICES)}, not {text!r}")
    return text


def share(value: str | float) -> float:
    """Return a number from 0 to 1; else ValueError."""
    number = float(value)
    if not 0 <= number <= 1:
        raise ValueError(f"must lie between 0 and 1, not {value}")
    return number


def positive(value: str | float) -> float:
    """Return a finite number above 0; else ValueError."""
    number = float(value)
    if not 0 < number < float("inf"):
        raise ValueError(f"must be a positive number, not {value}")
    return number


def count(value: str | int) -> int:
    """Return a whole number of at least 1; else ValueError."""
    number = int(value)
    if number < 1:
        raise ValueError(f"must be at least 1, not {value}")
    return number


FOLDS = ("mean", "smooth")


def fold_words(text: str) -> str:
    """Return auto, off, or words of FOLDS in their order, joined by commas; else ValueError."""
    words = {word.strip() for word in text.split(",")}
    if words in ({"auto"}, {"off"}):
        return words.pop()
    if not words <= set(FOLDS):
        raise ValueError(f"must be auto, off, mean, smooth or mean,smooth, not {text!r}")
    return ",".join(word for word in FOLDS if word in words)


def natural(value: str | int) -> int:
    """Return a whole number of at least 0; else ValueError."""
    number = int(value)
    if number < 0:
        raise ValueError(f"must not be negative, not {value}")
    return number


@dataclass(frozen=True, kw_only=True)
class QualityOptions:
    """Algorithm, calibration and memory. `plan.calibration` says what they make of each layer."""

    optimizer: str | None = option(
        None,
        "--optimizer",
        group="quality",
        metavar="NAME",
        type=algorithm_name,
        help=f"how values are rounded: {help_text()}",
    )
    simple: bool = option(
        False,
        "--simple",
        group="quality",
        action="store_true",
        help="round every layer to nearest, whatever --optimizer and --calibration-data say",
    )
    calibration_data: str | None = option(
        None,
        "--calibration-data",
        "--calibration_data",
        group="quality",
        metavar="FILE",
        help="measured layer inputs (safetensors or JSON), from ctq calibrate, the ComfyUI node or "
        "convert_to_quant.calibrate; layers with inputs are then rounded with quip",
    )
    calib_samples: int | None = option(
        None,
        "--calib-samples",
        "--calib_samples",
        group="quality",
        metavar="N",
        type=count,
        help="use at most N of the tokens recorded for each layer (default: all)",
    )
    calibration_lora: str | None = option(
        None,
        "--calibration-lora",
        "--calibration_lora",
        group="quality",
        metavar="FILE",
        help="round with more care in the input directions that this LoRA uses, so that it still works on "
        "the quantized model",
    )
    bias_correction: bool = option(
        False,
        "--bias-correction",
        "--bias_correction",
        group="quality",
        action="store_true",
        help="correct biases for the mean output error on the measured inputs (default: biases stay as they "
        "are)",
    )
    static_activations: bool = option(
        False,
        "--static-activations",
        "--static_activations",
        group="quality",
        action="store_true",
        help="store a fixed input scale per layer, from the calibration data (needs the node pack in "
        "ComfyUI)",
    )
    smoothquant: bool = option(
        False,
        "--smoothquant",
        group="quality",
        action="store_true",
        help="divide outlier channels of the inputs and multiply the weights by the same factors (needs "
        "--calibration-data, and the node pack in ComfyUI)",
    )
    smoothquant_alpha: float = option(
        0.5,
        "--smoothquant-alpha",
        "--smoothquant_alpha",
        group="quality",
        metavar="A",
        type=share,
        help="strength of --smoothquant, from 0 to 1: 0 lets only the weights set the factors, 1 only the "
        "inputs (default 0.5)",
    )
    fold: str | None = option(
        None,
        "--fold",
        group="quality",
        metavar="auto|mean,smooth|off",
        type=fold_words,
        help="move what calibration knows of a layer's inputs into the weights before it, exactly: mean "
        "(inputs less their mean), smooth (channels of even size), auto (both, where the model is known); "
        "runs anywhere, but LoRAs must be made to fit (default: auto for T5 and language models, onto which "
        "nobody loads LoRAs, else off)",
    )
    scale_search: bool = option(
        False,
        "--scale-search",
        "--scale_search",
        group="quality",
        action="store_true",
        help="choose each scale for the least squared error, not by the largest absolute value",
    )
    quip_actorder: bool | None = option(
        None,
        "--quip-actorder",
        "--quip_actorder",
        group="quality",
        action="boolean",
        help="quantize the columns with the largest inputs first (default: but for int8, which gains least)",
    )
    quip_passes: int | None = option(
        None,
        "--quip-passes",
        "--quip_passes",
        group="quality",
        metavar="N",
        type=natural,
        help="after LDLQ go over all columns again, at most N times, and move each value to where the output "
        "error is least given all others: at 8 bits 4 passes take twice the time and gain 0.2 dB (default: 4 "
        "for int4, else 0)",
    )
    quip_seed: int = option(
        0,
        "--quip-seed",
        "--quip_seed",
        group="quality",
        metavar="N",
        type=int,
        help="random seed: which tokens --calib-samples picks, where learned rounding starts (default 0)",
    )
    quip_damping: float = option(
        DAMPING,
        "--quip-damping",
        "--quip_damping",
        group="quality",
        metavar="D",
        type=positive,
        help="share of the Hessian's mean diagonal that is added to its diagonal: more of it fits the "
        f"calibration less closely, and other inputs better (default {DAMPING})",
    )
    num_iter: int = option(
        100,
        "--num_iter",
        "--num-iter",
        group="quality",
        metavar="N",
        type=count,
        help="number of steps that learned rounding takes per layer (default 100)",
    )
    lr: float | None = option(
        None,
        "--lr",
        group="quality",
        metavar="R",
        type=positive,
        help="learning rate of learned rounding (default: depends on --optimizer)",
    )
    device: str = option(
        "auto",
        "--device",
        group="memory",
        metavar="NAME",
        type=device_name,
        help="device for quip, ldlq and learned rounding: auto (default), cpu, cuda, cuda:1, xpu; rounding "
        "to nearest always runs on the CPU",
    )
    streaming_mode: str = option(
        "auto",
        "--streaming-mode",
        "--streaming_mode",
        group="memory",
        metavar="MODE",
        type=streaming_mode,
        help="share of the free device memory that one layer may use: off (no limit), minimal (0.85), auto "
        "(0.8, the default), balanced (0.6) or aggressive (0.3); larger layers are computed in parts or on "
        "the CPU",
    )
    low_memory: bool = option(
        False,
        "--low-memory",
        "--low_memory",
        group="memory",
        action="store_true",
        help="hold one layer at a time in memory, and use --streaming-mode aggressive on the device",
    )
    quip_checkpointed: bool | None = option(
        None,
        "--quip-checkpointed",
        "--quip_checkpointed",
        group="memory",
        action="boolean",
        help="factor the Hessian in place and quantize the rows in chunks: the same result, with one matrix "
        "of the Hessian's size in memory instead of four (default: decided by --quip-checkpoint-threshold)",
    )
    quip_checkpoint_threshold: int = option(
        8192,
        "--quip-checkpoint-threshold",
        "--quip_checkpoint_threshold",
        group="memory",
        metavar="K",
        type=count,
        help="turn --quip-checkpointed on for layers with at least K columns (default 8192)",
    )
    quip_checkpoint_segments: int = option(
        4,
        "--quip-checkpoint-segments",
        "--quip_checkpoint_segments",
        group="memory",
        metavar="N",
        type=count,
        help="number of chunks that --quip-checkpointed divides a layer's rows into (default 4)",
    )
    bf16_compute: str = option(
        "auto",
        "--bf16-compute",
        "--bf16_compute",
        group="memory",
        metavar="auto|on|off",
        type=compute_mode,
        help="compute Hessians and LDLQ's error feedback with bf16 operands: faster, slightly less exact; "
        "auto (default) does so on GPUs that have bf16",
    )

    def folds(self, unasked: bool) -> frozenset[str]:
        """Return the words of FOLDS that are to be folded; none for off.

        unasked: whether the model is one to fold where nobody says so.
        """
        asked = self.fold or ("auto" if unasked else "off")
        return frozenset(FOLDS if asked == "auto" else asked.split(",")) - {"off"}
