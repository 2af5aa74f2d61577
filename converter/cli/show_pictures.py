"""Showing a comparison of pictures to a person."""

from ..pictures.report import PictureComparison, Side


def pictures_text(result: PictureComparison) -> str:
    """Return the comparison as text: both runs, a line per picture, what could not be run."""
    perceptual = any(p.lpips is not None for p in result.pictures)
    width = max([30, *(len(p.case) for p in result.pictures)]) + 2
    lines = [
        f"pipeline   {result.pipeline}, its {result.component} in {result.dtype} on {result.device}",
        _side("original", result.reference),
        _side("quantized", result.candidate),
        "",
        f"{'picture':{width}}{'PSNR dB':>10}{'SSIM':>9}{'LPIPS' if perceptual else '':>9}".rstrip(),
    ]
    for p in result.pictures:
        psnr = "equal" if p.psnr_db is None else f"{p.psnr_db:.2f}"
        others = (f"{'' if v is None else f'{v:.4f}':>9}" for v in (p.ssim, p.lpips))
        lines.append(f"{p.case:{width}}{psnr:>10}{''.join(others)}".rstrip())
    lines += [f"{name:{width}}not run: {why}" for name, why in result.failed.items()]
    return "\n".join(lines)


def _side(label: str, side: Side) -> str:
    figures = [f"weights {side.weight_bytes / 2**20:,.1f} MiB"]
    if side.seconds_per_step is not None:
        figures.append(f"{side.seconds_per_step:.3f} s per step")
    if side.peak_bytes is not None:
        figures.append(f"peak {side.peak_bytes / 2**20:,.0f} MiB")
    return f"{label:11}{', '.join(figures)}  {side.name}"
