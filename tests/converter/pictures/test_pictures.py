"""`ctq compare --pipeline`: a real pipeline run with its own weights and with quantized ones."""

import json
import re
import shutil
import subprocess

import pytest
import torch
from peers import peer
from safetensors.torch import load_file, save_file

peer("diffusers")
from tiny_pipelines import save_flux_pipeline  # noqa: E402

from convert_to_quant.converter.cli.main import main as ctq  # noqa: E402
from convert_to_quant.converter.cli.show_pictures import pictures_text  # noqa: E402
from convert_to_quant.converter.pages.pictures import render  # noqa: E402
from convert_to_quant.converter.pictures.cases import edge_cases, plan_cases  # noqa: E402
from convert_to_quant.converter.pictures.metrics import SIGMA, WINDOW, psnr, ssim  # noqa: E402
from convert_to_quant.converter.pictures.perceptual import lpips_meter  # noqa: E402
from convert_to_quant.converter.pictures.report import Picture, PictureComparison, Side  # noqa: E402
from convert_to_quant.quantization import convert_to_int8  # noqa: E402

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = save_flux_pipeline(tmp_path_factory.mktemp("pipeline"))
    (path / "prompts.txt").write_text("a photo of a red house\n\n<b>a cat</b> at night\n")
    convert_to_int8(path / WEIGHTS, path / "q.safetensors")
    return path


def compared(folder, candidate, *more):
    command = ["compare", "--pipeline", str(folder), "--candidate", str(candidate), "--steps", "2"]
    return ctq([*command, "--prompts", str(folder / "prompts.txt"), "--dtype", "fp32", *more])


def test_every_picture_is_made_twice(folder, tmp_path, capsys):
    page, figures = tmp_path / "p.html", tmp_path / "p.json"
    sizes = ("--sizes", "32x32", "48x32", "--seeds", "1", "2")
    assert (
        compared(folder, folder / "q.safetensors", *sizes, "--html", str(page), "--json", str(figures)) == 0
    )
    found = json.loads(figures.read_text())
    assert len(found["pictures"]) == 2 * 2 * 2 + 4
    assert found["failed"] == {}
    assert found["component"] == "transformer"
    assert found["candidate"]["weight_bytes"] < 0.5 * found["reference"]["weight_bytes"]
    assert all(20 < p["psnr_db"] < 120 and 0.9 < p["ssim"] <= 1 for p in found["pictures"])
    assert {(p["width"], p["height"]) for p in found["pictures"]} == {(32, 32), (48, 32), (80, 48)}
    text = page.read_text()
    assert text.count('src="data:image/png;base64,') == 3 * len(found["pictures"])
    assert "&lt;b&gt;a cat&lt;/b&gt;" in text
    assert "<b>a cat</b>" not in text
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert f"{len(found['pictures'])}</b>" in text
    assert "prompt 2, seed 2, 48 x 32" in capsys.readouterr().out


def test_the_same_weights_make_equal_pictures_and_others_do_not(folder, tmp_path, capsys):
    few = ("--sizes", "32x32", "--no-edge-cases", "--min-psnr", "200")
    assert compared(folder, folder / WEIGHTS, *few) == 0
    assert capsys.readouterr().out.count("equal") == 2
    spoiled = {n: torch.randn_like(t) for n, t in load_file(folder / WEIGHTS).items()}
    save_file(spoiled, tmp_path / "noise.safetensors")
    assert compared(folder, tmp_path / "noise.safetensors", *few[:3], "--min-psnr", "60") == 1
    assert "is below 60" in capsys.readouterr().err


def test_a_candidate_that_gives_nan_fails(folder, tmp_path, capsys):
    broken = load_file(folder / WEIGHTS)
    broken["proj_out.bias"][:] = torch.nan
    save_file(broken, tmp_path / "nan.safetensors")
    assert compared(folder, tmp_path / "nan.safetensors", "--sizes", "32x32", "--no-edge-cases") == 1
    assert "not finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--pipeline", "/nowhere/at all"], "cannot be loaded"),
        (["--candidate", "/nowhere.safetensors"], "no such file"),
        (["--component", "text"], "no component 'text'; name one of its own with --component: text_encoder"),
        (["--component", "text_encoder"], "q.safetensors"),
        (["--prompts", "/nowhere.txt"], "/nowhere.txt"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--sizes", "1x1", "--no-edge-cases"], "no picture"),
    ],
)
def test_refusals_are_one_line(folder, capsys, change, message):
    assert compared(folder, folder / "q.safetensors", *change) == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert message in errors[-1]
    assert "Traceback" not in "".join(errors)


def test_prompts_are_built_in(folder, capsys):
    command = ["compare", "--pipeline", str(folder), "--candidate", str(folder / WEIGHTS), "--dtype", "fp32"]
    assert ctq([*command, "--sizes", "16x16", "--steps", "1", "--no-edge-cases", "--count", "2"]) == 0
    assert capsys.readouterr().out.count("equal") == 2


def test_a_size_that_is_none_is_a_wrong_command_line(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        compared(folder, folder / "q.safetensors", "--sizes", "big")
    assert stop.value.code == 2
    assert "'big' is no size" in capsys.readouterr().err


def test_edge_cases_are_long_large_and_several():
    long, large, batch = edge_cases(["a b", "c"], 3, (1024, 768))
    assert len(long.prompts[0].split()) == 300
    assert large.size == (1536, 1152)
    assert batch.prompts == ("a b", "c")
    assert [c.size for c in plan_cases(["x"], [0, 1], [None])] == [None, None]


def test_psnr_and_ssim_are_their_definitions():
    """Against every window's sums in float64, one by one."""
    g = torch.Generator().manual_seed(4)
    a = torch.rand(1, 14, 13, 2, generator=g)
    b = (a + 0.1 * torch.randn(a.shape, generator=g)).clamp(0, 1)
    assert psnr(a, a) is None
    assert ssim(a, a) == pytest.approx(1)
    assert psnr(a, b) == pytest.approx(float(-10 * torch.log10((a - b).double().square().mean())))
    at = torch.arange(WINDOW).double() - WINDOW // 2
    weight = torch.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * SIGMA**2))
    weight /= weight.sum()
    values = []
    for i in range(14 - WINDOW + 1):
        for j in range(13 - WINDOW + 1):
            for c in range(2):
                x, y = (t[0, i : i + WINDOW, j : j + WINDOW, c].double() for t in (a, b))
                mx, my = (weight * x).sum(), (weight * y).sum()
                vx, vy = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum()
                cov = (weight * (x - mx) * (y - my)).sum()
                values.append(
                    (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
                )
    assert ssim(a, b) == pytest.approx(float(torch.stack(values).mean()), rel=1e-9)
    assert ssim(a[:, :10], b[:, :10]) is None


def _compared(lpips):
    pixels = torch.rand(64, 64, 3).numpy()
    picture = Picture("a kite, seed 0", "a kite", 0, 64, 64, 1, 30.0, 0.9, lpips, False, pixels, pixels)
    side = Side("model", 1 << 20, 0.1, 1 << 20)
    return PictureComparison("pipeline", "transformer", "cpu", "fp32", side, side, [picture])


def test_lpips_is_shown_where_it_was_measured():
    for shown in (pictures_text, render):
        with_it, without = shown(_compared(0.1234)), shown(_compared(None))
        assert "0.1234" in with_it
        assert "0.1234" not in without
    assert "LPIPS" in pictures_text(_compared(0.1234)).splitlines()[4]
    assert "LPIPS" not in pictures_text(_compared(None))
    assert _compared(0.1234).to_dict()["pictures"][0]["lpips"] == 0.1234


def test_lpips_is_measured_without_a_download_or_not_at_all(tmp_path, monkeypatch):
    """Weights of AlexNet that are drawn at random measure something too; without them nothing is."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    assert lpips_meter() is None
    pytest.importorskip("lpips")
    models = pytest.importorskip("torchvision.models", exc_type=(ImportError, RuntimeError))
    (tmp_path / "checkpoints").mkdir()
    file = models.AlexNet_Weights.DEFAULT.url.rpartition("/")[2]
    (tmp_path / "checkpoints" / file).write_bytes(b"cut off")
    assert lpips_meter() is None
    torch.save(models.alexnet(weights=None).state_dict(), tmp_path / "checkpoints" / file)
    measure = lpips_meter()
    a = torch.rand(2, 64, 80, 3)
    assert measure(a, a) == 0
    assert 0 < measure(a, (a + 0.01).clamp(0, 1)) < measure(a, 1 - a)
    assert measure(a[:, :63], a[:, :63]) is None


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to draw the page")
def test_a_browser_draws_the_page_without_an_error(folder, tmp_path):
    page, shot = tmp_path / "p.html", tmp_path / "p.png"
    few = ("--sizes", "32x32", "--no-edge-cases", "--html", str(page))
    assert compared(folder, folder / "q.safetensors", *few) == 0
    command = ["chromium", "--headless", "--no-sandbox", "--enable-logging=stderr", "--v=0"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert shot.stat().st_size > 10_000, done.stderr
    assert "CONSOLE" not in done.stderr
