"""``ctq compare --pipeline``: the command line of pictures made with two sets of weights."""

import argparse
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from ...files.report import require_report, save_html, save_json
from ...formats.errors import ConversionError
from ..pictures.report import DTYPES
from ..plan.inputs import files_behind
from ..recording.prompts import read_prompts, spread
from .show_pictures import pictures_text
from .suggest import SuggestingParser
from .text import say

BUILT_IN_COUNT = 4
"""Prompts of the built-in list that are run."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    p = SuggestingParser(
        prog="ctq compare --pipeline",
        description="Make the same pictures with a diffusers pipeline as it is and with quantized weights.",
    )
    p.add_argument(
        "--pipeline", required=True, help="folder of the pipeline, or a hub id that is in the cache"
    )
    p.add_argument(
        "--candidate", required=True, help="the quantized checkpoint, in ComfyUI's or diffusers' names"
    )
    p.add_argument("--prompts", metavar="FILE", help="text file with one prompt per line (default: built in)")
    p.add_argument(
        "--count",
        type=int,
        metavar="N",
        help="prompts to run, evenly over the list (default: 4 built in, or all)",
    )
    p.add_argument(
        "--component", help="the component that the checkpoint is for (default: its transformer or UNet)"
    )
    p.add_argument("--seeds", type=int, nargs="+", default=[0], help="random seeds (default 0)")
    p.add_argument(
        "--sizes",
        type=_size,
        nargs="+",
        default=[],
        metavar="WxH",
        help="sizes, as 1024x1024 (default: its own)",
    )
    p.add_argument("--steps", type=int, help="steps of the denoiser (default: the pipeline's)")
    p.add_argument("--guidance", type=float, help="guidance scale (default: the pipeline's)")
    p.add_argument(
        "--no-edge-cases",
        action="store_true",
        help="leave out the long prompt, the large picture and the batch of two",
    )
    p.add_argument("--device", default="cpu", help="device to run on: cpu (default), cuda, cuda:1, ...")
    p.add_argument("--dtype", choices=DTYPES, default="bf16", help="dtype of floats (default bf16)")
    p.add_argument("--min-psnr", type=float, help="exit with 1 when the worst PSNR is below this, in dB")
    p.add_argument("--html", metavar="FILE", help="write original, quantized and difference to this page")
    p.add_argument("--json", metavar="FILE", help="also write the figures to this file, as JSON")
    return p


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,5})[xX]([0-9]{1,5})", text)
    if not found or 0 in (size := (int(found[1]), int(found[2]))):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it as 1024x1024")
    return size


def _quiet_libraries() -> None:
    """Keep the bars and warnings of diffusers and transformers off the screen."""
    for name in ("diffusers", "transformers"):
        with suppress(ImportError):  # `load_pipeline` says what is missing
            logging = import_module(f"{name}.utils.logging")
            logging.set_verbosity_error()
            logging.disable_progress_bar()


def main(argv: Sequence[str]) -> int:
    """Run it; returns 1 below --min-psnr and when the candidate alone fails in a case, else 0."""
    args = parser().parse_args(argv)
    if args.steps is not None and args.steps < 1:
        raise ConversionError(f"--steps must be at least 1, not {args.steps}")
    if args.count is not None and args.count < 1:
        raise ConversionError(f"--count must be at least 1, not {args.count}")
    from ..pictures.run import compare_pictures  # torch is loaded only once the command line is right

    prompts = read_prompts(Path(args.prompts) if args.prompts else None)
    prompts = spread(prompts, args.count or (None if args.prompts else BUILT_IN_COUNT))
    inputs = [args.candidate, *files_behind(Path(args.candidate)), *([args.prompts] if args.prompts else [])]
    for place in (args.html, args.json):
        require_report(place, inputs)
    _quiet_libraries()
    result = compare_pictures(
        args.pipeline,
        args.candidate,
        prompts,
        seeds=args.seeds,
        sizes=args.sizes,
        edges=not args.no_edge_cases,
        component=args.component,
        steps=args.steps,
        guidance=args.guidance,
        device=args.device,
        dtype=args.dtype,
        told=lambda line: say(line, file=sys.stderr),
    )
    worst = result.worst_db()
    say(pictures_text(result))
    if args.json:
        save_json(args.json, result.to_dict(), inputs)
    if args.html:
        from ..pages.pictures import render

        save_html(args.html, render(result), inputs)
    if result.broken:
        say(f"error: the candidate could not be run in {result.broken} cases", file=sys.stderr)
        return 1
    if args.min_psnr is not None and worst is not None and not worst >= args.min_psnr:
        say(f"error: worst PSNR {worst:.2f} dB is below {args.min_psnr} dB", file=sys.stderr)
        return 1
    return 0
