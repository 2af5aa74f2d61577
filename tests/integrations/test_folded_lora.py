"""LoRAs on models from folded files, applied by us or by diffusers: as on the float model."""

import copy
import logging

import pytest
import torch
from foldable import FAMILIES, uneven
from lora_files import low_rank, save_lora
from models import save
from peers import peer

from folding import folded, record, save_model

peer("accelerate"), peer("peft")

from convert_to_quant.converter.cli.main import main  # noqa: E402
from convert_to_quant.diffusers import mark_quantized  # noqa: E402
from convert_to_quant.formats.errors import CheckpointError  # noqa: E402
from convert_to_quant.quantization import convert_to_int8  # noqa: E402
from convert_to_quant.runtime import apply_lora, fold_lora, load_quantized, save_quantized  # noqa: E402

MADE = FAMILIES["flux"]
MODULES = (
    "transformer_blocks.0.attn.to_k",
    "transformer_blocks.0.attn.to_v",
    "transformer_blocks.0.norm1.linear",
    "single_transformer_blocks.0.proj_out",
    "single_transformer_blocks.0.proj_mlp",
    "x_embedder",
)


def outputs(model, batches):
    with torch.no_grad():
        return torch.cat([MADE.run(model, batch).flatten() for batch in batches])


class Files:
    """A float Flux, its file and its folded file, and a LoRA in PEFT's names."""

    def __init__(self, folder, comfyui_names):
        self.model, g = uneven("flux"), torch.Generator().manual_seed(1)
        self.batches = [MADE.inputs(g) for _ in range(3)]
        inputs = record(self.model, self.batches, folder / "c.safetensors")
        self.source = folder / "m.safetensors"
        if comfyui_names:
            save_quantized(self.model, self.source, comfyui_names=True)
        else:
            save_model(self.model, self.source)
        tensors, plan = folded(self.source, inputs)
        self.file = save(folder / "folded.safetensors", tensors, dict(plan.metadata))
        self.int8 = folder / "int8.safetensors"
        convert_to_int8(
            str(self.source), str(self.int8), calibration_data=str(inputs), fold="auto", force=True
        )
        self.state = {}
        for i, layer in enumerate(MODULES):
            shape = self.model.get_submodule(layer).weight.shape
            self.state |= low_rank(f"transformer.{layer}", *shape, seed=i, style="peft")[0]
        self.lora = save_lora(folder / "lora.safetensors", self.state)
        plain = outputs(self.model, self.batches)
        with apply_lora(self.model, self.lora):
            self.want = outputs(self.model, self.batches)
        self.effect = (self.want - plain).norm()
        assert self.effect > 0.01 * self.want.norm(), "the LoRA does nothing: no test"

    def wrong(self, got):
        """How much of the LoRA's effect is another."""
        return float((got - self.want).norm() / self.effect)

    def load(self, file=None):
        model = MADE.build().eval().requires_grad_(False)
        load_quantized(model, file or self.file)
        return model


@pytest.fixture(scope="module", params=["diffusers' names", "ComfyUI's names"])
def flux(request, tmp_path_factory):
    return Files(tmp_path_factory.mktemp("flux"), request.param.startswith("Comfy"))


def test_ours_is_folded_and_comes_off(flux, tmp_path):
    model = flux.load()
    before = {n: p.clone() for n, p in model.named_parameters()}
    with apply_lora(model, flux.lora):
        assert flux.wrong(outputs(model, flux.batches)) < 1e-4
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    model.__dict__["checkpoint_folds"] = {}
    with apply_lora(model, flux.lora):
        assert flux.wrong(outputs(model, flux.batches)) > 0.1, "unfolded it is wrong: else no test"


def test_diffusers_adapters_are_folded(flux):
    model = flux.load()
    model.load_lora_adapter(flux.state, prefix="transformer", adapter_name="style")
    assert flux.wrong(outputs(model, flux.batches)) < 1e-4
    model.unload_lora()
    assert flux.wrong(outputs(model, flux.batches)) > 0.5
    twin = copy.deepcopy(model)
    twin.load_lora_adapter(flux.state, prefix="transformer")
    twin.fuse_lora()
    assert flux.wrong(outputs(twin, flux.batches)) < 1e-3


def test_an_int8_file_saved_and_read_again_by_diffusers(flux, tmp_path):
    model = flux.load(flux.int8)
    plain = outputs(model, flux.batches)
    mark_quantized(model)
    model.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved")
    want = flux.want - outputs(flux.model, flux.batches)
    for one in (model, again):
        one.load_lora_adapter(flux.state, prefix="transformer")
        assert (outputs(one, flux.batches) - plain - want).norm() < 0.2 * want.norm()
    model.unload_lora()
    type(model).load_lora_adapter(model, flux.state, prefix="transformer")
    assert (outputs(model, flux.batches) - plain - want).norm() > 0.3 * want.norm(), "unfolded: else no test"


def test_a_single_file_is_folded_too(tmp_path):
    made, model, g = FAMILIES["wan"], uneven("wan"), torch.Generator().manual_seed(1)
    batches = [made.inputs(g) for _ in range(2)]
    inputs = record(model, batches, tmp_path / "c.safetensors")
    source = save_quantized(model, tmp_path / "m.safetensors", comfyui_names=True)
    tensors, plan = folded(source, inputs)
    file = save(tmp_path / "folded.safetensors", tensors, dict(plan.metadata))
    model.save_config(tmp_path / "config")
    state = {}
    for seed, layer in enumerate(("blocks.0.attn1.to_v", "blocks.1.attn1.to_q", "blocks.1.ffn.net.0.proj")):
        shape = model.get_submodule(layer).weight.shape
        state |= low_rank(f"transformer.{layer}", *shape, seed=seed, style="peft")[0]

    def run(one):
        with torch.no_grad():
            return torch.cat([made.run(one, batch).flatten() for batch in batches])

    got = type(model).from_single_file(file, config=str(tmp_path / "config"))
    plain = run(model)
    for one in (model, got):
        one.load_lora_adapter(state, prefix="transformer")
    assert (run(got) - run(model)).norm() < 1e-3 * (run(model) - plain).norm()


def test_what_does_not_fit_is_told(flux, tmp_path, caplog):
    model = flux.load()
    assert fold_lora(flux.state, flux.model, "transformer.") == flux.state
    layer = "transformer.transformer_blocks.0.attn.to_v"
    with pytest.raises(CheckpointError, match=r"neither lora_A nor lora_B.*--merge-lora"):
        fold_lora({f"{layer}.lokr_w1": torch.zeros(2, 2)}, model, "transformer.")
    with pytest.raises(CheckpointError, match="needs A and B"):
        fold_lora({f"{layer}.lora_A.weight": torch.zeros(2, 128)}, model, "transformer.")
    with pytest.raises(CheckpointError, match="not a path"):
        model.load_lora_adapter(str(flux.lora))
    fitted = tmp_path / "fitted.safetensors"
    assert main(["edit", str(flux.file), "--fold-lora", str(flux.lora), "-o", str(fitted)]) == 0
    other = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with caplog.at_level(logging.WARNING):
        load_quantized(other, flux.file, strict=False)
    assert "have another name in Sequential: LoRAs cannot be fitted" in caplog.text
