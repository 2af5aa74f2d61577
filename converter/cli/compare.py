"""``ctq compare``: the command line of a comparison."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ...files.report import require_report, save_json
from ...formats.errors import ConversionError
from ..compare.report import DTYPES
from ..plan.inputs import files_named
from . import compare_pictures
from .show_compare import comparison_text
from .suggest import SuggestingParser
from .text import say


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    p = SuggestingParser(
        prog="ctq compare",
        description="Run one model on two checkpoints and compare outputs, memory and time.",
        epilog="Pictures of a diffusers pipeline: ctq compare --pipeline FOLDER --help",
    )
    p.add_argument("reference", help="the checkpoint to measure against, for instance the bf16 original")
    p.add_argument("candidate", help="the quantized checkpoint")
    p.add_argument(
        "--model",
        required=True,
        help="module:function or file.py:function: builds the model and returns (model, inputs)",
    )
    p.add_argument("--device", default="cpu", help="device to run on: cpu (default), cuda, cuda:1, ...")
    p.add_argument(
        "--dtype", choices=DTYPES, default="bf16", help="dtype of inputs and of float weights (default bf16)"
    )
    p.add_argument(
        "--seed", type=int, default=0, help="random seed of the model's inputs and of every run (default 0)"
    )
    p.add_argument("--runs", type=int, default=3, help="timed runs per case (default 3)")
    p.add_argument("--long", type=int, default=4096, help="number of tokens in the long case (default 4096)")
    p.add_argument(
        "--min-sqnr", type=float, help="exit with 1 when the worst output SQNR is below this, in dB"
    )
    p.add_argument(
        "--perplexity",
        metavar="TEXT",
        help="also run this text file through both: perplexity where the model answers input_ids with "
        "logits, else the cosine of its embeddings (mean of last_hidden_state)",
    )
    p.add_argument("--tokenizer", metavar="PATH", help="tokenizer.json for --perplexity, or its folder")
    p.add_argument("--window", type=int, default=512, help="tokens of the text per run (default 512)")
    p.add_argument("--json", help="also write the figures to this file, as JSON")
    return p


def main(argv: Sequence[str]) -> int:
    """Run a comparison; returns 0, or 1 below --min-sqnr. ConversionError as `compare` does."""
    if any(word.partition("=")[0] == "--pipeline" for word in argv):
        return compare_pictures.main(argv)
    args = parser().parse_args(argv)
    if args.perplexity and not args.tokenizer:
        raise ConversionError(
            "--perplexity needs --tokenizer PATH: the model's tokenizer.json, or its folder"
        )
    if args.window < 2:
        raise ConversionError(f"--window must be at least 2, not {args.window}")
    from ..compare.run import compare  # torch is loaded only once the command line is known to be right

    named = (args.reference, args.candidate)
    inputs = [file for name in named for file in files_named(name)]
    inputs.append(args.model.partition(":")[0])
    if args.perplexity:
        inputs += [args.perplexity, args.tokenizer, Path(args.tokenizer) / "tokenizer.json"]
    require_report(args.json, inputs)
    result = compare(
        args.reference,
        args.candidate,
        args.model,
        device=args.device,
        dtype=args.dtype,
        seed=args.seed,
        runs=args.runs,
        long=args.long,
        text=args.perplexity,
        tokenizer=args.tokenizer or "",
        window=args.window,
    )
    say(comparison_text(result))
    if args.json:
        save_json(args.json, asdict(result), inputs)
    worst = result.worst()
    if args.min_sqnr is not None and not worst >= args.min_sqnr:
        say(f"error: worst output SQNR {worst:.2f} dB is below {args.min_sqnr} dB", file=sys.stderr)
        return 1
    return 0
