"""``ctq calibrate``: run a float model on prompts and record what its layers see."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ...formats.errors import ConversionError
from ..options.size import size_in_bytes, target_size
from .suggest import SuggestingParser
from .text import say

_DESCRIPTION = """\
Run a float model on prompts and record what its linear layers see, for --calibration-data.

MODEL is the folder of a diffusers pipeline or of a transformers model (text encoder, language model), or the
id of one that is in the hub's cache already. Nothing is downloaded. Of each input a uniform sample of the
tokens is kept, over all prompts and steps. Record on what the model is used for; without --prompts a list of
many kinds of text is used."""


_ANEW = "no output was written; what was recorded is lost, and the same command begins again"


def size(text: str) -> tuple[int, int]:
    """Return (width, height) of ``1024x768``; else ValueError."""
    width, x, height = text.lower().partition("x")
    if not (x and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"a size is WIDTHxHEIGHT, like 1024x768, not {text!r}")
    return int(width), int(height)


def number(text: str) -> int:
    """Return a whole number of at least 1; else ArgumentTypeError."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def memory(text: str) -> int:
    """Return the bytes of a size such as 8GB; else ArgumentTypeError."""
    try:
        found = target_size(text)
        if not found.endswith("%"):
            return size_in_bytes(found, 0)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from e
    raise argparse.ArgumentTypeError(f"give bytes or a size such as 8GB, not {text!r}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    p = SuggestingParser(
        "ctq calibrate", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("model", metavar="MODEL", help="folder, or id in the hub's cache")
    p.add_argument("-o", "--output", required=True, type=Path, help="the calibration (.safetensors)")
    p.add_argument(
        "--prompts", type=Path, metavar="FILE", help="text file, one prompt a line (default: built in)"
    )
    p.add_argument(
        "--count",
        type=number,
        metavar="N",
        help="prompts to run, evenly over the list (default: 16 of a pipeline, all of a text model)",
    )
    p.add_argument(
        "--component",
        metavar="NAME",
        help="model of the pipeline to record, such as text_encoder_2 (default: the one that denoises)",
    )
    p.add_argument("--steps", type=number, metavar="N", help="denoising steps (default: the pipeline's)")
    p.add_argument(
        "--size",
        type=size,
        action="append",
        default=[],
        metavar="WxH",
        help="size of the images; several are taken in turn (default: the pipeline's)",
    )
    p.add_argument("--frames", type=number, metavar="N", help="frames of videos (default: the pipeline's)")
    p.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the first run's noise (default 0)"
    )
    p.add_argument(
        "--tokens", type=number, default=4096, metavar="N", help="tokens kept for each input (default 4096)"
    )
    p.add_argument(
        "--max-memory", type=memory, metavar="SIZE", help="fewer tokens, so that all take less than this"
    )
    p.add_argument(
        "--influence",
        type=number,
        default=0,
        metavar="N",
        help="also measure how much of each layer's error arrives at the model's output, for --target-size: "
        "on N of the model's calls, made again once for each layer (2 or more will do)",
    )
    p.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights (default: bfloat16 on a GPU)",
    )
    p.add_argument("--device", default="auto", metavar="NAME", help="auto (default), cpu, cuda, cuda:1, xpu")
    p.add_argument("--offload", action="store_true", help="keep on the device only the model that runs")
    p.add_argument("--quiet", action="store_true", help="print one line at the end")
    p.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    return p


def main(argv: Sequence[str]) -> int:
    """Run the command; returns 0. ConversionError says what cannot be done."""
    args = parser().parse_args(argv)
    if args.output.suffix != ".safetensors":
        raise ConversionError(f"{args.output}: a calibration with samples is a .safetensors file; name it so")
    import torch

    from ..plan.devices import best_device, usable_device
    from ..recording.record import Request, record
    from ..recording.runner import Runs

    device = best_device() if args.device == "auto" else usable_device(args.device)
    name = args.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    if args.offload and device.type == "cpu":
        raise ConversionError("--offload moves models to a device and back; there is none here")
    runs = Runs(
        args.steps, tuple(args.size), args.frames, args.seed, getattr(torch, name), device, args.offload
    )
    request = Request(
        args.model,
        args.output,
        args.prompts,
        args.count,
        args.component,
        args.tokens,
        args.max_memory,
        args.influence,
        args.overwrite,
        runs,
    )
    try:
        say(record(request, None if args.quiet else _Lines()))
    except KeyboardInterrupt as e:
        raise KeyboardInterrupt(_ANEW) from e
    return 0


class _Lines:
    """A line on stderr after each prompt, and after every tenth of what is more; with the time it took."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != "prompt" and done < total and done % max(1, total // 10):
            return
        now = time.monotonic()
        say(f"{what} {done} of {total}: {now - self._last:.1f} s", file=sys.stderr, flush=True)
        self._last = now
