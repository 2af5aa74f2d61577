"""How far a candidate's outputs are from those it is measured against."""

import torch
import torch.nn.functional as F

from ...formats.errors import ConversionError
from .cases import TORCH, Case
from .report import CaseResult
from .side import Outcome


def score(case: Case, reference: Outcome, candidate: Outcome) -> CaseResult:
    """Measure the candidate's output against the reference's: SQNR in dB and cosine.

    ConversionError for outputs of different sizes.
    """
    result = CaseResult(case.name)
    want, got = reference.values, candidate.values
    if want is None or got is None:
        side = "reference: " if reference.error and not case.skip else "" if case.skip else "candidate: "
        result.note = side + (reference.error or candidate.error)
        return result
    if want.shape != got.shape:
        raise ConversionError(
            f"{case.name}: the reference's output has {want.numel()} values, the candidate's {got.numel()}; "
            "both must be of one model"
        )
    result.sqnr, result.cosine = _distance(got, want)
    result.reference_seconds, result.candidate_seconds = reference.seconds, candidate.seconds
    if not want.isfinite().all():
        result.sqnr, result.note = None, "the reference's output is not finite"
    elif not got.isfinite().all():
        result.sqnr, result.note = float("-inf"), "the candidate's output is not finite"
    return result


def _distance(got: torch.Tensor, want: torch.Tensor) -> tuple[float, float]:
    got, want = got.double().flatten(), want.double().flatten()
    noise, signal = (got - want).square().sum(), want.square().sum()
    sqnr = float("inf") if noise == 0 else float(10 * torch.log10(signal / noise))
    return sqnr, float(F.cosine_similarity(got, want, dim=0))


def layer_cases(layers: list, device: str, seed: int) -> list[CaseResult]:
    """Run the candidate's linears on inputs that models rarely see, against their dequantized weights."""
    g = torch.Generator().manual_seed(seed)
    results = []
    for weight, bias in layers:
        k = weight.shape[1]
        tries = {
            "M=1": torch.randn(1, k, generator=g),
            "1-D": torch.randn(k, generator=g),
            "M=2048": torch.randn(2048, k, generator=g),
            "3 x 7 rows": torch.randn(3, 7, k, generator=g),
            "transposed": torch.randn(k, 33, generator=g).t(),
            "every other row": torch.randn(2, 64, k, generator=g)[:, ::2],
            **{name: torch.randn(33, k, generator=g).to(dtype) for name, dtype in TORCH.items()},
        }
        dense = weight.map_inner(lambda a: a, orig_dtype=torch.float32).dequantize()
        for name, x in tries.items():
            x = x.to(device)
            with torch.no_grad():
                got = F.linear(x, weight, bias)
                want = F.linear(x.float(), dense, None if bias is None else bias.float())
            sqnr, cosine = _distance(got, want)
            results.append(CaseResult(f"{list(weight.shape)} {name}", sqnr, cosine))
    return results
