"""Folding: the model computes what it did, in channels that are easier to round, and the file tells of it."""

import itertools
import json

import pytest
import torch
from foldable import FAMILIES, uneven
from lora_files import low_rank, save_lora
from models import save
from oracle import dequantize
from running_models import sqnr
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from convert_to_quant.converter.stored.inspect import inspect_file
from convert_to_quant.converter.verify.run import verify
from convert_to_quant.files.writer import OutputFile
from convert_to_quant.folding.coding import KEY
from convert_to_quant.formats.errors import CheckpointError, ConversionError
from convert_to_quant.quantization import convert_to_int8, plan_int8
from convert_to_quant.runtime import load_quantized
from folding import folded, record, save_model


class Case:
    """A model, its checkpoint and a record of its inputs."""

    def __init__(self, family, folder, batches=32):
        self.family, self.made = family, FAMILIES[family]
        self.model = uneven(family)
        g = torch.Generator().manual_seed(1)
        self.source = save_model(self.model, folder / f"{family}.safetensors")
        batches = [self.made.inputs(g) for _ in range(batches)]
        self.calibration = record(self.model, batches, folder / f"{family}-calibration.safetensors")
        self.held_out = [self.made.inputs(g) for _ in range(8)]

    def outputs(self, model=None):
        """What a model, or a file in the model's class, makes of inputs that no calibration has seen."""
        if model is None or isinstance(model, torch.nn.Module):
            loaded = model or self.model
        else:
            loaded = self.made.build().eval().requires_grad_(False)
            load_quantized(loaded, model)
        return torch.cat([self.made.run(loaded, batch).flatten() for batch in self.held_out])

    def convert(self, output, fold="auto", **options):
        report = convert_to_int8(
            str(self.source),
            str(output),
            calibration_data=str(self.calibration),
            fold=fold,
            preset=self.made.preset,
            **options,
        )
        return output, report


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return Case("flux", tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return Case("qwen3", tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def folded_flux(flux, tmp_path_factory):
    return flux.convert(tmp_path_factory.mktemp("folded") / "q.safetensors")[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folded_model_computes_what_it_did(family, tmp_path):
    """In the class that runs it: a fold that misses a reader or a producer shows as other outputs."""
    case = Case(family, tmp_path, batches=2)
    options = {"preset": case.made.preset, "force": True, "keep_names": case.made.keep_names}
    tensors, plan = folded(case.source, case.calibration, **options)
    assert (len(plan.inputs), sum(one.mean for one in plan.inputs)) == case.made.inside
    told = [int(f.exponents.abs().max()) for f in plan.folds.factors]
    assert [t > 0 for t in told] == [one.smooth for one in plan.inputs], "nothing to balance: no test"
    want, got = case.outputs(), case.outputs(save(tmp_path / "folded.safetensors", tensors))
    assert float((got - want).norm() / want.norm()) < 1e-5


def test_a_folded_file_is_nearer_to_its_model(flux, tmp_path):
    """Outputs of the layers behind folds, as they run, on inputs that no calibration has seen.

    Not the end of the model: through these few channels of random weights errors grow and cancel by chance.
    """
    held_out, scores = record(flux.model, flux.held_out, tmp_path / "held-out.safetensors"), {}
    _, plan = folded(flux.source, flux.calibration, preset=flux.made.preset)
    behind = {c.layer for one in plan.inputs for c in one.columns}
    for fold in ("off", "smooth", "auto"):
        output, _ = flux.convert(tmp_path / f"{fold}.safetensors", fold)
        report = verify(flux.source, output, held_out)
        assert report.ok
        found = [r.w8a8_db for r in report.layers if r.name in behind]
        assert len(found) == len(behind)
        scores[fold] = sum(found) / len(found)
    assert scores["off"] + 0.5 < scores["smooth"], scores
    assert scores["smooth"] + 0.3 < scores["auto"], scores


def test_a_folded_file_is_what_stock_loaders_know(flux, folded_flux, tmp_path):
    """No tensor more, none of another dtype or shape: the factors stand in the header."""
    plain, _ = flux.convert(tmp_path / "plain.safetensors", "off")
    with safe_open(folded_flux, "pt") as a, safe_open(plain, "pt") as b:
        assert {n: a.get_slice(n).get_shape() for n in a.keys()} == {  # noqa: SIM118
            n: b.get_slice(n).get_shape()
            for n in b.keys()  # noqa: SIM118
        }
        assert KEY in a.metadata()
        assert KEY not in b.metadata()
    assert inspect_file(folded_flux).folded == "7 inputs folded, 7 of them less their mean"
    assert inspect_file(plain).folded == ""


def test_folded_vectors_of_a_bf16_file_are_stored_in_float32(flux, tmp_path):
    """And only those: what is rounded there is the same error in every token and step."""
    tensors = {n: t.bfloat16() for n, t in load_file(flux.source).items()}
    source, output = save(tmp_path / "m.safetensors", tensors), tmp_path / "q.safetensors"
    convert_to_int8(str(source), str(output), calibration_data=str(flux.calibration), fold="auto")
    stored = load_file(output)
    wide = {n for n, t in stored.items() if t.dtype == torch.float32 and not n.endswith("weight_scale")}
    assert {"double_blocks.0.img_mod.lin.bias", "single_blocks.0.linear2.bias"} < wide
    assert all(n.endswith(".bias") for n in wide)
    assert stored["double_blocks.0.img_mlp.2.bias"].dtype == stored["img_in.weight"].dtype == torch.bfloat16
    assert verify(source, output).ok


def test_a_verification_folds_the_original(flux, folded_flux):
    report = verify(flux.source, folded_flux)
    assert report.ok
    assert min(r.weight_db for r in report.layers) > 25
    assert any("7 inputs are folded" in note for note in report.notes)


@pytest.mark.parametrize(
    "name",
    [
        "double_blocks.0.img_mod.lin.bias",
        "double_blocks.0.img_attn.proj.bias",
        "single_blocks.0.linear1.weight",
        "img_in.weight",
    ],
)
def test_a_verification_still_tells_damage(name, flux, folded_flux, tmp_path):
    """In a folded bias of a producer, in one of a reader, in a folded layer, in what no fold changes."""
    tensors = load_file(folded_flux)
    with safe_open(folded_flux, "pt") as f:
        metadata = f.metadata()
    hurt = tensors[name].flatten()
    hurt[3:5] = hurt[3:5].flip(0) if tensors[name].is_floating_point() else -hurt[3:5]
    save_file(tensors, tmp_path / "damaged.safetensors", metadata)
    report = verify(flux.source, tmp_path / "damaged.safetensors")
    assert not report.ok
    faults = {r.name for r in report.layers if r.fault} | {p.where for p in report.violations}
    assert faults == {name.removesuffix(".weight") if name.startswith("single") else name}


def test_a_verification_without_the_record_of_folds_fails(flux, folded_flux, tmp_path):
    """The folds are no excuse that a file could do without."""
    with safe_open(folded_flux, "pt") as f:
        metadata = {k: v for k, v in f.metadata().items() if k != KEY}
    save_file(load_file(folded_flux), tmp_path / "silent.safetensors", metadata)
    assert not verify(flux.source, tmp_path / "silent.safetensors").ok


def damaged(text):
    """Records that are none, each with what is said of it."""
    content = json.loads(text)
    yield "{", "not valid"
    yield json.dumps({**content, "version": 2}), "version 2"
    yield json.dumps({**content, "data": content["data"][:-8]}), "damaged"
    yield json.dumps({**content, "data": "x"}), "damaged"
    yield json.dumps({"version": 1}), "has no"


def test_a_record_of_folds_that_is_damaged_is_refused(flux, folded_flux, tmp_path):
    with safe_open(folded_flux, "pt") as f:
        metadata = f.metadata()
    tensors, path = load_file(folded_flux), tmp_path / "q.safetensors"
    for text, said in damaged(metadata[KEY]):
        save_file(tensors, path, {**metadata, KEY: text})
        with pytest.raises(CheckpointError, match=said):
            verify(flux.source, path)


def test_a_record_of_another_model_is_refused(flux, folded_flux, tmp_path):
    name = "double_blocks.0.img_attn.proj.weight"
    tensors = {
        n: t for n, t in load_file(folded_flux).items() if not n.startswith("double_blocks.0.img_attn")
    }
    with safe_open(folded_flux, "pt") as f:
        save_file(tensors, tmp_path / "q.safetensors", f.metadata())
    source = save(tmp_path / "m.safetensors", {"img_in.weight": tensors["img_in.weight"]})
    with pytest.raises(CheckpointError, match=r"has no double_blocks\.0"):
        verify(source, tmp_path / "q.safetensors")
    assert name not in tensors


def test_loras_are_merged_before_the_fold(flux, tmp_path):
    """The folded file is that of the merged model: to rounding, in float32."""
    parts = {}
    for i, layer in enumerate(("attn.to_v", "norm1.linear", "ff.net.0.proj")):
        module = flux.model.get_submodule(f"transformer_blocks.0.{layer}")
        added, change = low_rank(f"transformer.transformer_blocks.0.{layer}", *module.weight.shape, seed=i)
        parts |= added
        flux_change = change.float()
        module.weight += flux_change
        parts[f"undo{i}"] = flux_change
    try:
        want = flux.outputs()
    finally:
        for i, layer in enumerate(("attn.to_v", "norm1.linear", "ff.net.0.proj")):
            flux.model.get_submodule(f"transformer_blocks.0.{layer}").weight -= parts.pop(f"undo{i}")
    lora = save_lora(tmp_path / "lora.safetensors", parts)
    tensors, _ = folded(flux.source, flux.calibration, merge_lora_path=str(lora))
    got = flux.outputs(save(tmp_path / "folded.safetensors", tensors))
    assert float((got - want).norm() / want.norm()) < 1e-5
    output, _ = flux.convert(tmp_path / "q.safetensors", merge_lora_path=str(lora))
    assert verify(flux.source, output).ok


def test_an_interrupted_run_ends_with_the_same_file(flux, folded_flux, tmp_path, monkeypatch):
    mark, count = OutputFile.mark, itertools.count(1)

    def stopping(self, key, note):
        mark(self, key, note)
        if next(count) == 9:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(OutputFile, "mark", stopping)
        with pytest.raises(KeyboardInterrupt):
            flux.convert(tmp_path / "q.safetensors")
    _, report = flux.convert(tmp_path / "q.safetensors")
    assert (tmp_path / "q.safetensors").read_bytes() == folded_flux.read_bytes()
    assert flux.convert(tmp_path / "q.safetensors")[1].already_there
    assert not report.already_there


def test_a_target_size_counts_the_factors_in(flux, tmp_path):
    size = flux.source.stat().st_size * 3 // 10
    output, _ = flux.convert(tmp_path / "q.safetensors", target_size=str(size))
    assert output.stat().st_size <= size
    assert verify(flux.source, output).ok


def oracle(activity, weights, balance):
    """Exponents of t = rms(x)^a / rms(w)^(1 - a), geometric mean one, in quarters of an octave; float64."""
    octaves = balance * activity.log2() - (1 - balance) * weights.log2()
    return (4 * (octaves - octaves.mean())).round().clamp(-48, 48)


@pytest.mark.parametrize(
    ("form", "balance"), [("int8", 0.45), ("w4a8", 0.25), ("fp8", 0.25), ("mixed", 0.35)]
)
def test_factors_are_balanced_for_the_formats_that_read_the_input(form, balance, qwen, tmp_path):
    """Formats whose int8 inputs lose most have these evened out most; several readers meet in between."""
    options = {"format": form}
    if form == "mixed":
        (tmp_path / "layers.json").write_text(json.dumps({r".*\.up_proj": {"format": "asym_w4a8_int8"}}))
        options = {"layer_config": str(tmp_path / "layers.json")}
    options |= {"preset": qwen.made.preset, "force": True, "fold": "smooth"}
    _, plan = folded(qwen.source, qwen.calibration, **options)
    readers = [[c.layer for c in one.columns] for one in plan.inputs]
    number = readers.index(["layers.0.mlp.gate_proj", "layers.0.mlp.up_proj"])
    layers, made = readers[number], plan.folds.factors[number]
    stored = load_file(qwen.source)
    weights = torch.cat([stored[f"{n}.weight"] for n in layers]).double().square().mean(0).sqrt()
    x = torch.cat([plan.calibration.stats(n).samples for n in layers]).double()
    want = oracle(x.square().mean(0).sqrt(), weights, balance)
    assert (made.exponents - want).abs().max() <= 1  # ties
    assert (made.exponents != want).float().mean() < 0.05


def test_language_models_are_folded_unasked_and_others_are_not(flux, qwen, tmp_path):
    """Nobody loads LoRAs onto those; of what folding would bring others, a note tells."""

    def notes(case, **options):
        _, report = case.convert(tmp_path / "q.safetensors", overwrite=True, **options)
        with safe_open(tmp_path / "q.safetensors", "pt") as f:
            return KEY in f.metadata(), [n for n in report.notes if "fold" in n]

    was, told = notes(qwen, fold=None, force=True)
    assert was
    assert "8 inputs are folded" in told[0]
    assert notes(qwen, fold="off", force=True) == (False, [])
    was, told = notes(flux, fold=None)
    assert not was
    assert told == [n for n in told if "--fold auto" in n]
    assert len(told) == 1
    assert notes(flux, fold="off") == (False, [])
    plain = plan_int8(str(qwen.source), preset=qwen.made.preset, force=True)
    assert not any("fold" in n for n in plain.notes), "without calibration there is nothing to tell"


def test_the_name_of_a_file_that_nobody_named_says_that_it_is_folded(flux):
    """Whoever is given the file sees that LoRAs have to fit it; nothing else in stock ComfyUI says so."""
    asked = {"calibration_data": str(flux.calibration), "preset": flux.made.preset}
    names = [plan_int8(str(flux.source), fold=fold, **asked).output for fold in ("auto", "off")]
    assert [str(n).rpartition("/")[2] for n in names] == [
        "flux-int8_row_convrot_quip_folded.safetensors",
        "flux-int8_row_convrot_quip.safetensors",
    ]


def test_outputs_are_compared_as_they_count_in_the_model(qwen, tmp_path):
    """Rows of the up half are divided by factors that the next layer multiplies back: so is their noise."""
    output, _ = qwen.convert(tmp_path / "q.safetensors", force=True)
    _, plan = folded(qwen.source, qwen.calibration, preset=qwen.made.preset, force=True)
    name = "layers.0.mlp.up_proj"
    rows = plan.folds.row_factors(name, 256).double()[:, None]
    assert rows.max() > 2 * rows.min(), "even factors test nothing"
    stored = load_file(output)
    config = json.loads(bytes(stored[f"{name}.comfy_quant"].numpy()))
    group = config["convrot_groupsize"]
    integers, scale = (stored[f"{name}.{leaf}"].numpy() for leaf in ("weight", "weight_scale"))
    made = torch.from_numpy(dequantize(integers, scale, group)).double() * rows
    columns = plan.folds.columns(f"{name}.weight", torch.ones(1, made.shape[1])).double()
    x = plan.calibration.stats(name).samples.double()[:512]
    want = x @ load_file(qwen.source)[f"{name}.weight"].double().T
    got = x / columns @ made.T
    found = {r.name: r for r in verify(qwen.source, output, qwen.calibration).layers}[name]
    assert found.w8a16_db == pytest.approx(sqnr(got, want), abs=0.01)


def test_folds_need_measured_inputs(flux, tmp_path):
    with pytest.raises(ConversionError, match=r"--fold mean,smooth needs measured inputs"):
        convert_to_int8(str(flux.source), str(tmp_path / "q.safetensors"), fold="smooth,mean")
    notes = plan_int8(str(flux.source), fold="auto").notes
    assert "nothing is folded: --fold needs measured inputs, which --calibration-data gives" in notes
    assert not any("fold" in n for n in plan_int8(str(flux.source)).notes)
    with pytest.raises(ValueError, match="must be auto, off"):
        plan_int8(str(flux.source), fold="median")


def test_what_is_not_known_is_told_and_not_folded(flux, tmp_path):
    output, report = flux.convert(tmp_path / "q.safetensors", keep_names=True)
    assert any("nothing is folded: no layer behind a known norm" in n for n in report.notes)
    with safe_open(output, "pt") as f:
        assert KEY not in f.metadata()


def test_a_dry_run_counts_the_weights_that_are_read_for_factors(flux):
    options = {"calibration_data": str(flux.calibration), "force": True, "device": "cpu"}
    folded, unfolded = (plan_int8(flux.source, fold=fold, **options) for fold in ("auto", "off"))
    assert folded.seconds > unfolded.seconds > 0
