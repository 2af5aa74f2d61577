"""``ctq edit`` and ``convert_to_quant --edit-quant``: the command line of an edit."""

import argparse
import sys
from collections.abc import Sequence

from ..edit.settings import EditSettings, parse_add, parse_remove
from ..options.peer import EDIT_FLAGS
from .suggest import SuggestingParser

_DESCRIPTION = """\
Edit a quantized safetensors file: remove tensors, remove or set keys of the layers' comfy_quant,
make single layers float again, and put right what ComfyUI refuses or misreads (missing or nested
comfy_quant, wrong format labels, scales under old names or of a wrong shape or dtype, NUL padding,
a header that names other layers).
The input is not touched; every change is listed."""

_SHOWN = 12


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command, with the spellings of both its names."""
    p = SuggestingParser(
        "ctq edit",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("file", nargs="?", metavar="PATH", help="the file to edit (or -i PATH)")
    p.add_argument("-i", "--input", metavar="PATH", help=argparse.SUPPRESS)
    p.add_argument(
        "-o", "--output", metavar="FILE", help="the file to write (default: <input>-edited.safetensors)"
    )
    p.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    for flag in (*EDIT_FLAGS, "--comfy_quant", "--comfy-quant"):
        p.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    p.add_argument("--full-precision-mm", "--full_precision_mm", action="store_true", help=argparse.SUPPRESS)
    p.add_argument(
        "--remove-keys",
        "--remove_keys",
        metavar="A,B",
        type=parse_remove,
        action="extend",
        default=[],
        help="remove these tensors (exact names), and these keys from the layers' comfy_quant",
    )
    p.add_argument(
        "--add-keys",
        "--add_keys",
        metavar="JSON",
        type=_add,
        default={},
        help="set these keys in the layers' comfy_quant, as in '{\"convrot\": true}'",
    )
    p.add_argument(
        "--quant-filter",
        "--quant_filter",
        metavar="RE",
        help="remove and set keys only in layers whose name has a match of this regular expression",
    )
    p.add_argument(
        "--dequantize",
        metavar="RE",
        help="make layers BF16 again (F16 in a file of F16) whose name has a match, as in embed_tokens",
    )
    p.add_argument(
        "--save-quant-metadata",
        "--save_quant_metadata",
        action="store_true",
        help="also list the layers in the file's header (always done when the input does)",
    )
    p.add_argument(
        "--fold-lora",
        "--fold_lora",
        metavar="LORA",
        help="write no model, but this LoRA made one for the folded model PATH (see convert_to_quant --fold)",
    )
    p.add_argument(
        "--dry-run", "--dry_run", action="store_true", help="list the changes without writing anything"
    )
    p.add_argument("--json", metavar="FILE", help="also write the report to this file, as JSON")
    p.add_argument("--all", action="store_true", help="list every change, not only a few of each kind")
    return p


def main(argv: Sequence[str]) -> int:
    """Run an edit; returns 0. SystemExit(2) for a wrong command line, ConversionError as `edit` does."""
    p = parser()
    args = p.parse_args(argv)
    if args.file and args.input:
        p.error("name the input once: PATH or -i PATH")
    if not (args.file or args.input):
        p.error("an input is needed: PATH or -i PATH")
    if args.fold_lora:
        return _fold_lora(p, args)
    settings = EditSettings(
        input_file=args.file or args.input,
        output_file=args.output,
        remove_keys=tuple(args.remove_keys),
        add_keys=args.add_keys | ({"full_precision_matrix_mult": True} if args.full_precision_mm else {}),
        quant_filter=args.quant_filter,
        dequantize=args.dequantize,
        save_quant_metadata=args.save_quant_metadata,
        dry_run=args.dry_run,
        overwrite=args.overwrite,
    )
    from ...files.report import require_report, save_json
    from ..edit.run import edit  # torch is loaded only once the command line is known to be right
    from ..plan.inputs import files_named
    from ..progress import Silent
    from .bar import Bar
    from .show_edit import show_edit

    inputs = files_named(settings.input_file)
    require_report(args.json, [*inputs, settings.output_file] if settings.output_file else inputs)
    report = edit(settings, Bar() if sys.stderr.isatty() else Silent())
    if args.json:
        save_json(args.json, report.to_dict(), inputs)
    show_edit(report, None if args.all else _SHOWN)
    return 0


def _fold_lora(p: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    alone = {"file", "input", "output", "overwrite", "fold_lora"}
    others = [n for n, v in vars(args).items() if n not in alone and v != p.get_default(n)]
    if others:
        p.error(f"--fold-lora edits no model: leave out --{others[0].replace('_', '-')}")
    from ..edit.fold_lora import fold_lora
    from .text import say

    say(str(fold_lora(args.fold_lora, args.file or args.input, args.output, args.overwrite)))
    return 0


def _add(text: str) -> dict:
    try:
        return parse_add(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from e
