"""Verification: figures against plain formulas, every silent fault caught and named, reports complete."""

import html.parser
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from catalogs import REPOSITORY
from models import block_weights, save
from quantized import LAYER, config, config_tensor, load, make_pair, spoil
from safetensors.torch import save_file

from convert_to_quant import convert_to_int8
from convert_to_quant.converter.cli.main import main
from convert_to_quant.converter.stored.inspect import inspect_file
from convert_to_quant.converter.verify import weights
from convert_to_quant.converter.verify.html import render
from convert_to_quant.converter.verify.html_depth import depth
from convert_to_quant.converter.verify.report import family_of, histogram
from convert_to_quant.converter.verify.run import verify
from convert_to_quant.formats.errors import ConversionError
from convert_to_quant.quant.algorithms import LayerStats
from convert_to_quant.quant.calibration import save as save_calibration

LAYERS = [f"blocks.{b}.{n}" for b in range(2) for n in ("attn.qkv", "mlp.fc1", "mlp.fc2")]
TWIN = "blocks.1.attn.qkv"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("verify"))


def hadamard(group):
    """The regular Hadamard matrix by its definition."""
    base = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=torch.float64)
    h = torch.ones(1, 1, dtype=torch.float64)
    while h.shape[0] < group:
        h = torch.kron(h, base)
    return h / group**0.5


def dequantized(tensors, layer):
    """A layer's weight in float64, by the contract's own words."""
    w = tensors[f"{layer}.weight"].double() * tensors[f"{layer}.weight_scale"].double()
    settings = config(tensors, layer)
    if not settings.get("convrot"):
        return w
    h = hadamard(settings["convrot_groupsize"])
    return (w.view(w.shape[0], -1, h.shape[0]) @ h).view_as(w)


def db(reference, error):
    return 10 * torch.log10(reference.square().sum() / error.square().sum()).item()


def _result(report, layer=LAYER):
    return next(r for r in report.layers if r.name == layer)


@pytest.mark.parametrize(
    "options", [{}, {"convrot": False}, {"scaling_mode": "tensor"}, {"convrot_group_size": 16}], ids=str
)
def test_the_weight_sqnr_is_that_of_the_formula(tmp_path, options):
    original, quantized = make_pair(tmp_path, **options)
    before, after = load(original)[0], load(quantized)[0]
    report = verify(original, quantized)
    assert report.ok
    assert [r.name for r in report.layers] == LAYERS
    for r in report.layers:
        w = before[f"{r.name}.weight"].double()
        assert r.weight_db == pytest.approx(db(w, dequantized(after, r.name) - w), abs=1e-3)


def test_block_wise_layers_are_measured_and_only_noted(tmp_path):
    original, quantized = make_pair(tmp_path, scaling_mode="block")
    report = verify(original, quantized)
    assert report.ok
    assert {p.kind for p in report.problems} == {"block-wise"}
    w, tensors = load(original)[0][f"{LAYER}.weight"].double(), load(quantized)[0]
    scale = tensors[f"{LAYER}.weight_scale"].double()
    spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    error = tensors[f"{LAYER}.weight"].double() * spread - w
    assert _result(report).weight_db == pytest.approx(db(w, error), abs=1e-3)


@pytest.mark.parametrize("options", [{}, {"scaling_mode": "block"}], ids=["row", "block"])
def test_the_pieces_in_which_a_layer_is_read_do_not_change_its_figures(tmp_path, monkeypatch, options):
    original, quantized = make_pair(tmp_path, **options)
    whole = verify(original, quantized)
    monkeypatch.setattr(weights, "ELEMENTS", 5000)
    for a, b in zip(whole.layers, verify(original, quantized).layers, strict=True):
        assert a.weight_db == pytest.approx(b.weight_db, abs=1e-4)


def _drop_rotation(t, m):
    t[f"{LAYER}.comfy_quant"] = config_tensor({"format": "int8_tensorwise"})


def _wrong_group(t, m):
    t[f"{LAYER}.comfy_quant"] = config_tensor({**config(t), "convrot_groupsize": 64})


def _invented_rotation(t, m):
    t[f"{LAYER}.comfy_quant"] = config_tensor({**config(t), "convrot": True, "convrot_groupsize": 16})


def _shift_scale(t, m):
    t[f"{LAYER}.weight_scale"] = t[f"{LAYER}.weight_scale"].roll(1, 0)


def _shift_end(t, m):
    scale = t[f"{LAYER}.weight_scale"]
    t[f"{LAYER}.weight_scale"] = torch.cat([scale[:-400], scale[-400:].roll(1, 0)])


def _transpose_scale(t, m):
    t[f"{LAYER}.weight_scale"] = t[f"{LAYER}.weight_scale"].t()


def _inverse_scale(t, m):
    t[f"{LAYER}.weight_scale"] = 1 / t[f"{LAYER}.weight_scale"]


def _swap_layers(t, m):
    for end in (".weight", ".weight_scale"):
        t[LAYER + end], t[TWIN + end] = t[TWIN + end], t[LAYER + end]


def _noise(t, m):
    t[f"{LAYER}.weight"] = torch.randint_like(t[f"{LAYER}.weight"], -127, 128)


SILENT = {
    "dropped rotation flag": (_drop_rotation, "names no rotation, but a rotation in groups of 256 fits"),
    "wrong group": (_wrong_group, "names group 64, but a rotation in groups of 256 fits"),
    "shifted scale": (_shift_scale, "scales are not those of its rows"),
    "scale shifted near the end": (_shift_end, "scales are not those of its rows"),
    "inverted scale": (_inverse_scale, "scales are not those of its rows"),
    "swapped layers": (_swap_layers, f"its integers are those of {TWIN}.weight"),
    "noise": (_noise, "its integers do not fit the original"),
}


def _uneven_rows(tensors):
    """Rows of different size, as real models have; in an even layer one scale does for all."""
    g = torch.Generator().manual_seed(5)
    for name, w in tensors.items():
        if w.dim() == 2:
            tensors[name] = (w.float() * torch.randn(w.shape[0], 1, generator=g).mul(0.6).exp()).to(w.dtype)
    return tensors


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uneven")
    original = save(folder / "original.safetensors", _uneven_rows(block_weights()))
    convert_to_int8(original, folder / "quantized.safetensors")
    return original, folder / "quantized.safetensors"


@pytest.mark.parametrize(("change", "message"), SILENT.values(), ids=SILENT.keys())
def test_a_silent_fault_is_caught_and_named(uneven, tmp_path, change, message):
    bad = spoil(uneven[1], tmp_path / "bad.safetensors", change)
    report = verify(uneven[0], bad)
    assert not report.ok
    assert message in _result(report).fault
    assert report.worst_first()[0].fault
    assert {r.name for r in report.faults} <= {LAYER, TWIN}


def test_a_rotation_that_was_never_made_is_caught(tmp_path):
    original, quantized = make_pair(tmp_path, convrot=False)
    bad = spoil(quantized, tmp_path / "bad.safetensors", _invented_rotation)
    assert "names group 16, but no rotation fits" in _result(verify(original, bad)).fault


def test_a_transposed_scale_is_a_breach_of_the_contract(pair, tmp_path):
    bad = spoil(pair[1], tmp_path / "bad.safetensors", _transpose_scale)
    assert [p.kind for p in verify(pair[0], bad).violations] == ["scale shape"]


def _missing_bias(t, m):
    del t[f"{LAYER}.bias"]


def _one_bit(t, m):
    t["final_layer.weight"].view(torch.uint8)[-1, -1] ^= 1


def _other_dtype_other_values(t, m):
    t["final_layer.weight"] = t["final_layer.weight"].float() * 1.5


def _other_shape(t, m):
    t["final_layer.weight"] = t["final_layer.weight"][:-1]


MOVED = {
    "missing bias": (_missing_bias, "missing tensor"),
    "missing tensor": (lambda t, m: t.pop("final_layer.weight"), "missing tensor"),
    "one bit of a kept tensor": (_one_bit, "changed tensor"),
    "other values in another dtype": (_other_dtype_other_values, "changed tensor"),
    "another shape": (_other_shape, "shape"),
    "extra tensor": (lambda t, m: t.update({"extra": torch.ones(2)}), "extra tensor"),
    "cast": (lambda t, m: t.update({"final_layer.weight": t["final_layer.weight"].float()}), "changed dtype"),
    "other bias": (lambda t, m: t[f"{LAYER}.bias"].add_(0.01), "changed tensor"),
}


@pytest.mark.parametrize(("change", "kind"), MOVED.values(), ids=MOVED.keys())
def test_kept_tensors_that_are_not_as_before_fail(pair, tmp_path, change, kind):
    bad = spoil(pair[1], tmp_path / "bad.safetensors", change)
    assert [p.kind for p in verify(pair[0], bad).violations] == [kind]


@pytest.mark.parametrize("before", ["", "model.diffusion_model.", "transformer."])
@pytest.mark.parametrize("after", ["", "model.diffusion_model."])
def test_prefixes_may_differ(pair, tmp_path, before, after):
    def under(prefix):
        return lambda t, m: t.update({prefix + n: t.pop(n) for n in list(t)}) if prefix else None

    a = spoil(pair[0], tmp_path / "a.safetensors", under(before))
    b = spoil(pair[1], tmp_path / "b.safetensors", under(after))
    report = verify(a, b)
    assert report.ok
    assert not report.problems
    assert len(report.layers) == 6
    assert {r.family for r in report.layers} == {"blocks.N.attn.qkv", "blocks.N.mlp.fc1", "blocks.N.mlp.fc2"}


def test_parts_of_an_all_in_one_original_are_only_mentioned(pair, tmp_path):
    def all_in_one(t, m):
        t.update({f"model.diffusion_model.{n}": t.pop(n) for n in list(t)})
        t["vae.decoder.conv_in.weight"] = torch.ones(4, 4, 3, 3)

    report = verify(spoil(pair[0], tmp_path / "all.safetensors", all_in_one), pair[1])
    assert report.ok
    assert [p.kind for p in report.problems] == ["other part"]


def test_an_fp8_original_is_dequantized_by_its_scale(tmp_path):
    tensors = block_weights(dtype=torch.float32)
    for name in [n for n in tensors if n.startswith("blocks.") and tensors[n].dim() == 2]:
        scale = tensors[name].abs().max() / 448
        tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        tensors[f"{name.removesuffix('weight')}scale_weight"] = scale
    tensors["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    original = save(tmp_path / "fp8.safetensors", tensors)
    convert_to_int8(original, tmp_path / "int8.safetensors")
    report = verify(original, tmp_path / "int8.safetensors")
    assert report.ok
    assert not report.problems
    w = tensors[f"{LAYER}.weight"].double() * tensors[f"{LAYER}.scale_weight"].double()
    error = dequantized(load(tmp_path / "int8.safetensors")[0], LAYER) - w
    assert _result(report).weight_db == pytest.approx(db(w, error), abs=1e-3)


def test_fp8_layers_of_the_quantized_file_are_measured_too(pair, tmp_path):
    w = load(pair[0])[0][f"{LAYER}.weight"].float()
    scale = (w.abs().max() / 448).reshape(1)
    q = (w / scale).to(torch.float8_e4m3fn)

    def mix(t, m):
        t[f"{LAYER}.weight"], t[f"{LAYER}.weight_scale"] = q, scale
        t[f"{LAYER}.comfy_quant"] = config_tensor({"format": "float8_e4m3fn"})

    report = verify(pair[0], spoil(pair[1], tmp_path / "mixed.safetensors", mix))
    assert report.ok
    expected = db(w.double(), q.double() * scale.double() - w.double())
    assert _result(report).weight_db == pytest.approx(expected, abs=1e-3)
    assert _result(report).format == "float8_e4m3fn"


@pytest.mark.parametrize("options", [{}, {"scaling_mode": "block"}], ids=["row", "block"])
def test_outputs_are_compared_on_recorded_inputs(tmp_path, options):
    original, quantized = make_pair(tmp_path, **options)
    x = torch.randn(40, 256, generator=torch.Generator().manual_seed(3)).bfloat16()
    save_file({f"diffusion_model.{LAYER}.samples": x}, tmp_path / "calibration.safetensors")
    report = verify(original, quantized, tmp_path / "calibration.safetensors")
    r, other = _result(report), _result(report, TWIN)
    assert other.w8a8_db is None
    assert "5 layers have no recorded inputs" in report.notes[0]
    assert r.w8a8_db < r.w8a16_db
    assert r.w8a16_db == pytest.approx(r.weight_db, abs=1)
    if not options:
        w = load(original)[0][f"{LAYER}.weight"].double()
        y = x.double() @ w.t()
        v = dequantized(load(quantized)[0], LAYER)
        assert r.w8a16_db == pytest.approx(db(y, x.double() @ v.t() - y), abs=1e-2)
        h = hadamard(256)
        rotated = x.double() @ h
        step = rotated.abs().amax(1, keepdim=True) / 127
        inner = (rotated / step).round() * step
        assert r.w8a8_db == pytest.approx(db(y, inner @ (v @ h).t() - y), abs=0.1)


def test_a_pre_quant_scale_belongs_to_the_weight(pair, tmp_path):
    """SmoothQuant: the input is multiplied by it, so the weight that is stood for is q times it.

    Under int8_tensorwise stock ComfyUI ignores it and shows noise, which is told.
    """
    original = pair[0]
    smooth = torch.rand(256, generator=torch.Generator().manual_seed(1)) + 0.5

    def divided(t, m):
        t[f"{LAYER}.weight"] = (t[f"{LAYER}.weight"].float() / smooth).bfloat16()

    convert_to_int8(spoil(original, tmp_path / "divided.safetensors", divided), tmp_path / "q.safetensors")

    def smoothed(t, m):
        t[f"{LAYER}.pre_quant_scale"] = smooth

    report = verify(original, spoil(tmp_path / "q.safetensors", tmp_path / "s.safetensors", smoothed))
    assert [(p.kind, p.fatal) for p in report.problems if p.where == LAYER] == [
        ("smoothed", True),
        ("smoothed", False),
    ]
    assert not report.ok
    assert _result(report).weight_db > 35


def test_the_command_shows_outputs_where_inputs_are_given(pair, tmp_path, capsys):
    save_file({f"{LAYER}.samples": torch.randn(8, 256)}, tmp_path / "calibration.safetensors")
    argv = ["verify", *map(str, pair), "--activations", str(tmp_path / "calibration.safetensors")]
    assert main([*argv, "--html", str(tmp_path / "r.html")]) == 0
    assert "W8A8 dB" in capsys.readouterr().out
    assert "W8A16 dB" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("file", "message"),
    [("absent.safetensors", "does not exist"), ("other.safetensors", "matches any")],
)
def test_activations_that_serve_no_layer_are_refused(pair, tmp_path, file, message):
    save_file({"nothing.here.samples": torch.ones(2, 4)}, tmp_path / "other.safetensors")
    with pytest.raises(ConversionError, match=message):
        verify(*pair, tmp_path / file)


def test_two_unrelated_files_are_refused(pair, tmp_path):
    save_file({"something": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ConversionError, match="no tensor in common"):
        verify(tmp_path / "other.safetensors", pair[1])


class _Page(html.parser.HTMLParser):
    """Checks nesting, and gathers text and what the page would load."""

    VOID = ("meta", "br")

    def __init__(self):
        super().__init__()
        self.open, self.text, self.loads = [], [], []
        self.bars = 0

    def handle_starttag(self, tag, attrs):
        self.loads += [v for k, v in attrs if k in ("src", "href")]
        self.bars += tag == "rect"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        """Self-closed: neither opened nor counted."""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_holds_every_layer(pair, tmp_path):
    def two(t, m):
        _drop_rotation(t, m)
        t["a<b>&c"] = torch.ones(2)

    report = verify(pair[0], spoil(pair[1], tmp_path / "bad.safetensors", two))
    text = render(report)
    page = _Page()
    page.feed(text)
    page.close()
    assert not page.open
    assert not page.loads
    assert "http" not in text
    assert "url(" not in text
    words = "".join(page.text)
    assert all(name in words for name in LAYERS)
    assert all(family.name in words for family in report.families())
    assert "a<b>&c" in words
    assert page.bars >= len(report.families())
    assert "prefers-color-scheme: dark" in text
    histograms = text[text.index("by layer family") :]
    assert histograms.count('class="mark" x1=') == len(report.families()), "the threshold's line in every one"
    assert "Signal to quantization noise ratio" in words


def test_the_page_has_every_layer_along_the_depth(pair):
    report = verify(*pair)
    page = render(report)
    assert page.count("<circle") == len(LAYERS)
    at = [page.index(f"<title>{name}: weight") for name in sorted(LAYERS, key=natural)]
    assert at == sorted(at)
    assert "The dashed line" not in depth(report)
    assert "The dashed line" in depth(replace(report, threshold=60.0))
    assert depth(replace(report, layers=report.layers[:2])) == ""


def natural(name):
    return [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name)]


def test_the_command_writes_both_reports(pair, tmp_path, capsys):
    page, data = tmp_path / "r.html", tmp_path / "r.json"
    assert main(["verify", *map(str, pair), "--html", str(page), "--json", str(data), "--all"]) == 0
    report = json.loads(data.read_text())
    assert report["ok"] is True
    assert {r["name"] for r in report["layers"]} == set(LAYERS)
    assert sum(f["layers"] for f in report["families"]) == 6
    assert page.read_text().startswith("<!DOCTYPE html>")
    shown = capsys.readouterr().out
    assert all(name in shown for name in LAYERS)
    assert "6 quantized layers" in shown


@pytest.mark.parametrize(("threshold", "code"), [("30", 0), ("90", 1)])
def test_the_exit_code_tells_whether_a_layer_is_below_the_threshold(pair, threshold, code, capsys):
    assert main(["verify", *map(str, pair), "--threshold", threshold]) == code
    assert ("below 90 dB" in capsys.readouterr().err) is bool(code)


def test_a_broken_contract_fails_a_verification(pair, tmp_path, capsys):
    bad = spoil(pair[1], tmp_path / "bad.safetensors", _transpose_scale)
    assert main(["verify", str(pair[0]), str(bad)]) == 1
    said = capsys.readouterr().err
    assert f"contract: {LAYER}: its row scale has shape [1, 768]" in said
    assert "ctq edit puts right" in said


def test_a_file_that_cannot_be_opened_exits_with_1(pair, tmp_path):
    command = [
        sys.executable,
        "-m",
        "convert_to_quant",
        "verify",
        str(pair[0]),
        str(tmp_path / "no.safetensors"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "no such file" in done.stderr


def test_an_inspection_counts_what_is_there(pair):
    found = inspect_file(pair[1])
    tensors = load(pair[1])[0]
    (share,) = found.formats
    assert (share.name, share.tensors) == ("int8_tensorwise row + convrot 256", 6)
    assert share.parameters == sum(tensors[f"{n}.weight"].numel() for n in LAYERS)
    own = [n for n in tensors if n.rpartition(".")[0] in LAYERS and not n.endswith("bias")]
    assert share.nbytes == sum(tensors[n].nbytes for n in own)
    assert [s.name for s in found.dtypes] == ["BF16"]
    assert found.dtypes[0].tensors == len(tensors) - len(own)
    assert found.rotations == {"256": 6}
    assert found.nbytes == pair[1].stat().st_size


def test_an_inspection_is_shown_as_tables_or_json(pair, tmp_path, capsys):
    bad = spoil(pair[1], tmp_path / "bad.safetensors", _transpose_scale)
    assert main(["inspect", str(bad)]) == 0
    shown = capsys.readouterr().out
    assert f"problem: {LAYER}" in shown
    assert "rotation groups: 256: 6 layers" in shown
    assert main(["inspect", str(pair[1]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rotations"] == {"256": 6}


def test_an_inspection_recognises_the_model(tmp_path):
    names = ("double_blocks.0.img_mod.lin", "vector_in.in_layer", "img_in", "guidance_in.in_layer")
    save_file({f"{n}.weight": torch.ones(64, 64) for n in names}, tmp_path / "m.safetensors")
    assert "flux1" in inspect_file(tmp_path / "m.safetensors").architectures[0]


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("double_blocks.11.img_mlp.0", "double_blocks.N.img_mlp.0"),
        ("model.diffusion_model.layers.3.w1", "layers.N.w1"),
        ("0.auto.7.x", "N.auto.N.x"),
    ],
)
def test_a_family_is_a_name_without_block_numbers(name, family):
    assert family_of(name) == family


def test_a_histogram_counts_every_value_once():
    values = [0.0, 0.99, 1.0, 9.99, 10.0, -5.0, 99.0, float("inf"), float("-inf"), float("nan")]
    counts = histogram(values, 0, 10, 10)
    assert sum(counts) == len(values)
    assert counts[0] == 5
    assert counts[1] == 1
    assert counts[9] == 4


def test_a_calibrated_conversion_with_all_extras_passes(pair, tmp_path):
    """SmoothQuant's and static scales, corrected biases: additions of the format, not faults."""
    g = torch.Generator().manual_seed(2)
    weights = block_weights()
    records = {}
    for name in LAYERS:
        x = torch.randn(64, weights[f"{name}.weight"].shape[1], generator=g) + 0.2
        x[:, ::50] *= 10
        records[name] = LayerStats(x.bfloat16(), x.abs().amax(0), x.mean(0), float(x.abs().max() / 127))
    inputs = save_calibration(tmp_path / "c.safetensors", records)
    options = {"smoothquant": True, "bias_correction": True, "static_activations": True}
    out = tmp_path / "int8.safetensors"
    convert_to_int8(pair[0], out, calibration_data=str(inputs), **options)
    assert f"{LAYER}.pre_quant_scale" in load(out)[0]
    report = verify(pair[0], out, inputs)
    assert report.ok
    assert {p.kind for p in report.problems} == {"bias corrected", "smoothed"}
    assert all(r.weight_db > 25 and r.w8a8_db > 20 for r in report.layers)
