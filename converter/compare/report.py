"""``ctq compare``: one model, two checkpoints, the same inputs: how far apart, how big, how fast."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...formats.errors import ConversionError

DTYPES = ("fp32", "bf16", "fp16")


@dataclass
class CaseResult:
    """One case: output SQNR in dB and cosine against the reference, or why it did not run; median seconds."""

    name: str
    sqnr: float | None = None
    cosine: float | None = None
    reference_seconds: float | None = None
    candidate_seconds: float | None = None
    note: str = ""


@dataclass
class Side:
    """One checkpoint: bytes of its file and of the loaded weights, seconds to load, peak bytes on a GPU."""

    path: str
    file_bytes: int
    weight_bytes: int = 0
    load_seconds: float = 0.0
    int8_weights: int = 0
    peak_bytes: int | None = None


@dataclass
class Comparison:
    """Everything `compare` measured."""

    reference: Side
    candidate: Side
    device: str
    seed: int
    cases: list[CaseResult] = field(default_factory=list)
    layers: list[CaseResult] = field(default_factory=list)

    def worst(self) -> float:
        """The lowest output SQNR of all cases that ran; ConversionError when none did."""
        ran = [c.sqnr for c in self.cases if c.sqnr is not None]
        if not ran:
            raise ConversionError("no case could be run on both checkpoints")
        return min(ran)


def compare(
    reference: str,
    candidate: str,
    factory: str,
    *,
    device: str = "cpu",
    dtype: str = "bf16",
    seed: int = 0,
    runs: int = 3,
    long: int = 4096,
) -> Comparison:
    """Run the model that `factory` builds on both checkpoints, one after the other; returns a Comparison.

    factory: ``module:function`` or ``file.py:function``. The function returns ``(model, inputs)``: a module
        without weights worth keeping (it is built with its parameters on the meta device) and a
        tensor, a tuple of arguments or a dict of keywords. It is called under a fixed seed. Where it takes
        the keywords ``tokens`` and ``batch`` the cases of one token, of `long` tokens and of three
        batches are run too; elsewhere they are named as not run.
    dtype: of the cases other than the three dtype cases. runs: timed calls a case, after one untimed.

    Only one model is in memory at a time. ConversionError for a factory, a checkpoint or an output that
    cannot be used.
    """
    from .runs import layer_cases, plan_cases, run_side, score

    cases = plan_cases(factory, dtype, long, seed)
    settings: dict[str, Any] = {"device": device, "seed": seed, "runs": runs}
    ref_side, ref_outputs, _ = run_side(reference, factory, cases, keep_layers=False, **settings)
    cand_side, cand_outputs, layers = run_side(candidate, factory, cases, keep_layers=True, **settings)
    result = Comparison(ref_side, cand_side, device, seed)
    result.cases = [score(case, ref_outputs[case.name], cand_outputs[case.name]) for case in cases]
    result.layers = layer_cases(layers, device, seed)
    return result


def report(result: Comparison) -> str:
    """The comparison as text."""
    a, b = result.reference, result.candidate
    lines = [
        f"reference  {a.path}",
        f"candidate  {b.path}  ({b.int8_weights} INT8 weights)",
        f"device {result.device}, seed {result.seed}",
        "",
        f"{'':24}{'reference':>12}{'candidate':>12}{'ratio':>8}",
        _pair("file, MB", a.file_bytes / 1e6, b.file_bytes / 1e6),
        _pair("weights in memory, MB", a.weight_bytes / 1e6, b.weight_bytes / 1e6),
        _pair("load, s", a.load_seconds, b.load_seconds),
    ]
    if a.peak_bytes and b.peak_bytes:
        lines.append(_pair("peak on the device, MB", a.peak_bytes / 1e6, b.peak_bytes / 1e6))
    lines += [
        "",
        f"{'output against reference':24}{'SQNR dB':>12}{'cosine':>12}{'ref ms':>10}{'cand ms':>10}",
    ]
    lines += [_case(c) for c in result.cases]
    if result.layers:
        lines += ["", f"{'INT8 against float':24}{'SQNR dB':>12}{'cosine':>12}"]
        lines += [_case(c) for c in result.layers]
    return "\n".join(lines)


def _pair(name: str, a: float, b: float) -> str:
    return f"{name:24}{a:12.2f}{b:12.2f}{b / a if a else float('nan'):8.3f}"


def _case(case: CaseResult) -> str:
    if case.sqnr is None:
        return f"{case.name:24}not run: {case.note}"
    line = f"{case.name:24}{case.sqnr:12.2f}{case.cosine:12.6f}"
    if case.reference_seconds is not None and case.candidate_seconds is not None:
        line += f"{1e3 * case.reference_seconds:10.2f}{1e3 * case.candidate_seconds:10.2f}"
    return line + (f"  {case.note}" if case.note else "")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 0, or 1 when --min-sqnr is not reached. ConversionError says what failed."""
    args = _parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    result = compare(
        args.reference,
        args.candidate,
        args.model,
        device=args.device,
        dtype=args.dtype,
        seed=args.seed,
        runs=args.runs,
        long=args.long,
    )
    print(report(result))
    if args.json:
        Path(args.json).write_text(json.dumps(asdict(result), indent=1), encoding="utf-8")
    worst = result.worst()
    if args.min_sqnr is not None and not worst >= args.min_sqnr:
        print(f"error: worst output SQNR {worst:.2f} dB is below {args.min_sqnr} dB", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser: Any = argparse.ArgumentParser(
        prog="ctq compare",
        description="Run one model on two checkpoints and compare outputs, memory and time.",
    )
    parser.add_argument("reference", help="the checkpoint to measure against, for instance the bf16 original")
    parser.add_argument("candidate", help="the quantized checkpoint")
    parser.add_argument(
        "--model", required=True, help="module:function or file.py:function returning (model, inputs)"
    )
    parser.add_argument("--device", default="cpu", help="where to run (cpu, cuda, cuda:1, ...)")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="dtype of inputs and float weights")
    parser.add_argument("--seed", type=int, default=0, help="seed of the factory and of every run")
    parser.add_argument("--runs", type=int, default=3, help="timed runs a case")
    parser.add_argument("--long", type=int, default=4096, help="tokens of the long case")
    parser.add_argument("--min-sqnr", type=float, help="exit with 1 when a case falls below, in dB")
    parser.add_argument("--json", help="also write the figures to this file")
    return parser
