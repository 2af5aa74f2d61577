"""Pictures side by side as a page: original, quantized, and what differs, amplified."""

import base64
import io
from html import escape

import numpy as np

from ..pictures.report import Picture, PictureComparison
from .page import page

GAIN = 8
"""Factor of the difference that is shown."""

_STYLE = """<style>
.pictures { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); }
.pictures img { display: block; width: 100%; height: auto; border-radius: 4px; image-rendering: auto; }
.prompt { display: -webkit-box; -webkit-line-clamp: 3; -webkit-box-orient: vertical; overflow: hidden; }
</style>"""


def render(result: PictureComparison) -> str:
    """Write the page: the figures of both runs, every picture three times, what failed, the terms."""
    name = result.candidate.name.replace(chr(92), "/").rstrip("/").rpartition("/")[2]
    parts = [
        _STYLE,
        f"<header><h1>{escape(name)}: pictures</h1>",
        f'<p class="soft">{escape(result.component)} of {escape(result.pipeline)}, {escape(result.dtype)} on '
        f"{escape(result.device)}</p></header>",
        _tiles(result),
        _sides(result),
        _failed(result),
        *(_picture(p) for p in result.pictures),
        _TERMS,
    ]
    return page(f"{name}: pictures", "\n".join(part for part in parts if part))


_TERMS = f"""<section><h2>How to read it</h2><dl>
<dt>PSNR</dt><dd>10 log10 of 1 over the mean squared difference of two pictures whose values lie in 0 to 1, in
dB: 10 dB more is a tenth of the difference. Above some 40 dB eyes see none.</dd>
<dt>SSIM</dt><dd>Structural similarity (Wang et al., 2004): 1 for equal pictures, lower the less the structure
in small windows agrees.</dd>
<dt>LPIPS</dt><dd>Distance by the features of a trained network (Zhang et al., 2018): 0 for equal pictures. It
is measured where the package lpips and its weights are on the machine.</dd>
<dt>difference</dt><dd>The distance of the two values of each pixel and color, {GAIN} times; black where they
agree.</dd>
<dt>same seed</dt><dd>Both runs begin with the same noise. A diffusion model may turn a small change in an
early step into another picture that is as good: look, besides reading the figures.</dd></dl></section>"""


def decibels(value: float | None) -> str:
    """Return a PSNR in words."""
    return "equal" if value is None else f"{value:.1f} dB"


def _tiles(result: PictureComparison) -> str:
    figures = [
        (decibels(result.median_db()), "median PSNR"),
        (decibels(result.worst_db()), "worst PSNR"),
        (str(len(result.pictures)), "pictures"),
    ]
    similar = [p.ssim for p in result.pictures if p.ssim is not None]
    if similar:
        figures.append((f"{min(similar):.4f}", "worst SSIM"))
    perceptual = [p.lpips for p in result.pictures if p.lpips is not None]
    if perceptual:
        figures.append((f"{max(perceptual):.4f}", "worst LPIPS"))
    if result.failed:
        figures.append((str(len(result.failed)), "cases that could not be run"))
    cells = "".join(f'<div><b>{escape(n)}</b><span class="soft">{escape(t)}</span></div>' for n, t in figures)
    return f'<section class="tiles">{cells}</section>'


def _sides(result: PictureComparison) -> str:
    rows = []
    for label, side in (("original", result.reference), ("quantized", result.candidate)):
        step = "not known" if side.seconds_per_step is None else f"{side.seconds_per_step:.3f} s"
        peak = "not known" if side.peak_bytes is None else f"{side.peak_bytes / 2**20:,.0f} MiB"
        rows.append(
            f'<tr><td>{label}</td><td class="name">{escape(side.name)}</td>'
            f'<td class="n">{side.weight_bytes / 2**20:,.1f} MiB</td><td class="n">{step}</td>'
            f'<td class="n">{peak}</td></tr>'
        )
    where = "of the GPU" if result.device.startswith("cuda") else "of the process"
    head = (
        '<tr><th>run</th><th>weights</th><th class="n">their size</th><th class="n">time per step</th>'
        f'<th class="n">peak memory {where}</th></tr>'
    )
    return (
        f'<section><h2>Both runs</h2><div class="wide"><table>{head}{"".join(rows)}</table></div></section>'
    )


def _failed(result: PictureComparison) -> str:
    if not result.failed:
        return ""
    rows = "".join(
        f'<tr><td>{escape(n)}</td><td class="name">{escape(why)}</td></tr>'
        for n, why in result.failed.items()
    )
    head = "<tr><th>case</th><th>reason</th></tr>"
    return f'<section><h2>Not run</h2><div class="wide"><table>{head}{rows}</table></div></section>'


def _picture(picture: Picture) -> str:
    difference = np.abs(picture.reference - picture.candidate) * GAIN
    shown = (
        ("original", picture.reference),
        ("quantized", picture.candidate),
        (f"difference, {GAIN} times", difference),
    )
    figures = "".join(
        f'<figure><img src="{_data(pixels)}" alt="{escape(label)}" width="{picture.width}" '
        f'height="{picture.height}"><figcaption class="soft">{escape(label)}</figcaption></figure>'
        for label, pixels in shown
    )
    similar = "" if picture.ssim is None else f", SSIM {picture.ssim:.4f}"
    similar += "" if picture.lpips is None else f", LPIPS {picture.lpips:.4f}"
    video = f", the middle of {picture.frames} frames" if picture.frames > 1 else ""
    return (
        f"<section><h2>{escape(picture.case)}: {decibels(picture.psnr_db)}{similar}</h2>"
        f'<p class="soft prompt">{escape(picture.prompt)}</p>'
        f'<p class="soft">{picture.width} x {picture.height}, seed {picture.seed}{video}</p>'
        f'<div class="pictures">{figures}</div></section>'
    )


def _data(pixels: np.ndarray) -> str:
    """Return a picture [H, W, 1 or 3] in 0 to 1 as a PNG in a URL."""
    from PIL import Image  # comes with diffusers

    whole = np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(whole[..., 0] if whole.shape[-1] == 1 else whole).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")
