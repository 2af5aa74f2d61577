"""Showing a comparison to a person: two checkpoints side by side, then a line per case."""

from ..compare.report import CaseResult, Comparison, TextResult


def comparison_text(result: Comparison) -> str:
    """Return a comparison as text: the checkpoints, the cases, the layers."""
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
    if result.text is not None:
        lines += ["", _text(result.text)]
    return "\n".join(lines)


def _text(text: TextResult) -> str:
    if text.reference is not None and text.candidate is not None:
        change = 100 * (text.candidate / text.reference - 1)
        return (
            f"perplexity of {text.tokens} tokens: reference {text.reference:.4f}, candidate "
            f"{text.candidate:.4f} ({change:+.2f} %)"
        )
    return (
        f"embeddings of {text.windows} windows ({text.tokens} tokens): cosine {text.cosine:.6f}, worst "
        f"{text.worst_cosine:.6f}"
    )


def _pair(name: str, a: float, b: float) -> str:
    return f"{name:24}{a:12.2f}{b:12.2f}{b / a if a else float('nan'):8.3f}"


def _case(case: CaseResult) -> str:
    if case.sqnr is None:
        return f"{case.name:24}not run: {case.note}"
    line = f"{case.name:24}{case.sqnr:12.2f}{case.cosine:12.6f}"
    if case.reference_seconds is not None and case.candidate_seconds is not None:
        line += f"{1e3 * case.reference_seconds:10.2f}{1e3 * case.candidate_seconds:10.2f}"
    return line + (f"  {case.note}" if case.note else "")
