"""The same pictures with the original weights and with a candidate's, one after the other."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ...formats.errors import ConversionError
from ...quant.runtime import require_fit
from ..compare.side import weight_bytes
from ..plan.devices import usable_device
from .cases import edge_cases, plan_cases
from .metrics import psnr, ssim
from .peak import Peak
from .perceptual import Meter, lpips_meter
from .pipeline import Outcome, find_component, load_pipeline, replace_weights, run_case
from .report import Case, Picture, PictureComparison, Side


def compare_pictures(
    pipeline: str,
    candidate: str,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int] = (0,),
    sizes: Sequence[tuple[int, int]] = (),
    edges: bool = True,
    component: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    device: str = "cpu",
    dtype: str = "bf16",
    told: Callable[[str], None] = lambda line: None,
) -> PictureComparison:
    """Run a diffusers pipeline on every prompt, seed and size, as it is and with a candidate's weights.

    pipeline: a folder, or a hub id that is in the cache. candidate: a checkpoint of one of its components, in
    ComfyUI's or in diffusers' names, quantized or not. component: which one; None is the transformer or the
    UNet. sizes: [width, height]; empty is the pipeline's own. edges: also run `edge_cases`. steps, guidance:
    None leaves the pipeline's own. told: called with a line before each case.

    One pipeline is in memory at a time, and the pictures of the first run. ConversionError where the pipeline
    or the candidate cannot be used, CheckpointError where the candidate's tensors do not fit.
    """
    usable_device(device)
    if not Path(candidate).exists():
        raise ConversionError(f"--candidate {candidate}: no such file or folder")
    pipe = load_pipeline(pipeline, dtype, device)
    name, module = find_component(pipe, component)
    require_fit(module, candidate)  # before the first picture, not after the last
    runner = _Runner(pipe, steps, guidance, device, told)
    cases = plan_cases(prompts, seeds, list(sizes) or [None])
    peak = Peak(device)
    original = runner.run(cases, "original")
    if edges:
        more = edge_cases(prompts, seeds[0], _ordinary_size(sizes, original))
        original |= runner.run(more, "original")
        cases += more
    reference = runner.side(pipeline, weight_bytes(module), original, peak)
    replace_weights(module, candidate, dtype, device)
    peak = Peak(device)
    quantized = runner.run(cases, "quantized")
    changed = runner.side(candidate, weight_bytes(module), quantized, peak)
    result = PictureComparison(pipeline, name, device, dtype, reference, changed)
    meter = lpips_meter()
    for case in cases:
        _score(result, case, original[case.name], quantized[case.name], meter)
    return result


class _Runner:
    """A pipeline with what all its runs share."""

    def __init__(
        self,
        pipe: Any,
        steps: int | None,
        guidance: float | None,
        device: str,
        told: Callable[[str], None],
    ) -> None:
        self._pipe, self._steps, self._guidance = pipe, steps, guidance
        self._device, self._told = device, told

    def run(self, cases: Iterable[Case], kind: str) -> dict[str, Outcome]:
        outcomes = {}
        for case in cases:
            self._told(f"{kind}: {case.name}")
            outcomes[case.name] = run_case(self._pipe, case, self._steps, self._guidance, self._device)
        return outcomes

    def side(self, name: str, size: int, outcomes: dict[str, Outcome], peak: Peak) -> Side:
        seconds = [o.seconds_per_step for o in outcomes.values() if o.seconds_per_step is not None]
        return Side(name, size, median(seconds) if seconds else None, peak.bytes())


def _ordinary_size(sizes: Sequence[tuple[int, int]], outcomes: dict[str, Outcome]) -> tuple[int, int]:
    """Return the largest size asked for, or what the pipeline made by itself."""
    if sizes:
        return max(sizes, key=lambda s: s[0] * s[1])
    made = [p for o in outcomes.values() for p in o.pictures]
    if not made:
        errors = "; ".join(dict.fromkeys(o.error for o in outcomes.values()))
        raise ConversionError(f"the pipeline as it is makes no picture: {errors}")
    return made[0].shape[2], made[0].shape[1]


def _score(result: PictureComparison, case: Case, want: Outcome, got: Outcome, lpips: Meter | None) -> None:
    """Add the pictures of a case, or why there are none."""
    if want.error or got.error:
        side = "the original: " if want.error else "the candidate: "
        result.failed[case.name] = side + (want.error or got.error)
        result.broken += not want.error
        return
    for i, (a, b) in enumerate(zip(want.pictures, got.pictures, strict=True)):
        if not b.isfinite().all():
            result.failed[case.name] = "the candidate: the picture is not finite"
            result.broken += 1
            continue
        a, b = a.clamp(0, 1), b.clamp(0, 1)
        middle = len(a) // 2
        result.pictures.append(
            Picture(
                case=case.name,
                prompt=case.prompts[i],
                seed=case.seed + i,
                width=a.shape[2],
                height=a.shape[1],
                frames=len(a),
                psnr_db=psnr(a, b),
                ssim=ssim(a, b),
                lpips=None if lpips is None else lpips(a, b),
                identical=torch.equal(a, b),
                reference=a[middle].numpy(),
                candidate=b[middle].numpy(),
            )
        )
