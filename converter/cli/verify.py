"""``ctq verify``: the command line of a verification."""

import argparse
import sys
from collections.abc import Sequence

from .suggest import SuggestingParser

_DESCRIPTION = """\
Compare a quantized file with the original it was made from: each layer's weight as the file describes
it, every kept tensor byte for byte, and the rules that ComfyUI reads by. Exits with 1 when a layer is below
the threshold or wrong, or the contract is broken."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    p = SuggestingParser(
        "ctq verify",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "original",
        metavar="ORIGINAL",
        help="the file that was quantized, its index, or the folder of its shards; also org/model or a URL",
    )
    p.add_argument("quantized", metavar="QUANTIZED", help="the file to check")
    p.add_argument(
        "--activations", metavar="FILE", help="a calibration file: also measure layer outputs on its inputs"
    )
    p.add_argument(
        "--threshold",
        metavar="DB",
        type=float,
        help="weight SQNR in dB below which a layer fails (default 3: below it lies only noise)",
    )
    p.add_argument("--json", metavar="FILE", help="also write the report to this file, as JSON")
    p.add_argument(
        "--html", metavar="FILE", help="also write the report to this file, as one HTML page with histograms"
    )
    p.add_argument("--all", action="store_true", help="list every layer, not only the worst 20")
    return p


def main(argv: Sequence[str]) -> int:
    """Run a verification; returns 0 when all is well, else 1. ConversionError as `verify` does."""
    args = parser().parse_args(argv)
    from ...files.report import require_report, save_html, save_json
    from ..plan.inputs import files_named
    from ..progress import Silent
    from ..quantize.check import REFUSE_DB  # torch is loaded only once the command line is known to be right
    from ..verify.html import render
    from ..verify.run import verify
    from .bar import Bar
    from .show_verify import show_verification

    named = [args.original, args.quantized, *([args.activations] if args.activations else [])]
    inputs = [file for name in named for file in files_named(name)]
    for place in (args.json, args.html):
        require_report(place, inputs)
    threshold = REFUSE_DB if args.threshold is None else args.threshold
    progress = Bar() if sys.stderr.isatty() else Silent()
    report = verify(args.original, args.quantized, args.activations, threshold, progress)
    if args.json:
        save_json(args.json, report.to_dict(), inputs)
    if args.html:
        save_html(args.html, render(report), inputs)
    show_verification(report, args.all)
    return 0 if report.ok else 1
