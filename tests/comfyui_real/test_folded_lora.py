"""LoRAs on folded files in real ComfyUI: with the pack they do what they do to the model before its fold."""

import pytest
import torch
from lora_files import low_rank, save_lora
from safetensors.torch import save_file

from convert_to_quant.converter.cli.main import main
from convert_to_quant.quantization import convert_to_int8
from folding import folded, measured

FAMILIES = ("flux", "flux2", "hunyuan_video", "ltxv", "sd3", "wan")
BLOCK = "transformer.transformer_blocks.0"
DIFFUSERS = {
    f"{BLOCK}.attn.to_q": (256, 256),
    f"{BLOCK}.attn.to_v": (256, 256),
    f"{BLOCK}.attn.add_v_proj": (256, 256),
    f"{BLOCK}.norm1.linear": (1536, 256),
    "transformer.single_transformer_blocks.0.attn.to_v": (256, 256),
    "transformer.single_transformer_blocks.0.proj_mlp": (1024, 256),
    "transformer.single_transformer_blocks.0.proj_out": (256, 1280),
}
"""Modules of a Flux that diffusers keeps apart, and ComfyUI adds to rows of one weight."""


@pytest.fixture(scope="session")
def folded_files(tiny, tmp_path_factory):
    """A function that gives a family's model folded in floats: what differs is the LoRA's."""
    folder, made = tmp_path_factory.mktemp("folded"), {}

    def of(family):
        if family not in made:
            inputs = measured(tiny(family), folder / f"{family}-inputs.safetensors")
            tensors, plan = folded(tiny(family), inputs)
            made[family] = folder / f"{family}.safetensors"
            tensors = {n: t.contiguous() for n, t in tensors.items()}
            save_file(tensors, made[family], dict(plan.metadata))
            assert plan.inputs
        return made[family]

    return of


@pytest.fixture(scope="session")
def loras(stock, tiny, tmp_path_factory):
    """A function that gives a LoRA of a family in ComfyUI's names."""
    folder = tmp_path_factory.mktemp("loras")

    def of(family):
        path = folder / f"{family}.safetensors"
        if not path.exists():
            assert stock.call("families", "lora", path=tiny(family), target=path)
        return path

    return of


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pack_folds_what_is_loaded(stock, packed, tiny, folded_files, loras, family):
    files = {"original": tiny(family), "file": folded_files(family), "lora": loras(family), "family": family}
    assert packed.call("loading", "lora_error", **files) < 0.01
    assert stock.call("loading", "lora_error", **files) > 0.1, "as it is without the pack: no test otherwise"


def test_modules_of_one_weight_and_a_hooks_lora(packed, tiny, folded_files, tmp_path):
    parts = {}
    for seed, (module, shape) in enumerate(DIFFUSERS.items()):
        style = ("peft", "linear layer", "down up")[seed % 3]
        dtype = (torch.float32, torch.bfloat16)[seed % 2]
        parts |= low_rank(module, *shape, style=style, seed=seed, alpha=2, dtype=dtype)[0]
    files = {"original": tiny("flux"), "file": folded_files("flux"), "family": "flux"}
    lora = save_lora(tmp_path / "lora.safetensors", parts)
    assert packed.call("loading", "lora_error", **files, lora=lora) < 0.01
    assert packed.call("loading", "lora_error", **files, lora=lora, way="hook") < 0.01


def test_one_made_for_the_file_is_not_folded_again(stock, packed, tiny, folded_files, loras, tmp_path):
    file, lora, fitted = folded_files("flux"), loras("flux"), tmp_path / "fitted.safetensors"
    assert main(["edit", str(file), "--fold-lora", str(lora), "-o", str(fitted)]) == 0
    files = {"original": tiny("flux"), "file": file, "family": "flux", "lora": lora}
    for worker in (stock, packed):
        assert worker.call("loading", "lora_error", **files, fitted=fitted) < 0.01
    assert packed.call("loading", "lora_error", **files, fitted=fitted, way="bypass") < 0.01
    with pytest.raises(RuntimeError, match=r"is folded.*ctq edit MODEL --fold-lora LORA"):
        packed.call("loading", "lora_error", **files, way="bypass")


def test_in_int8_only_rounding_is_left(stock, packed, tiny, loras, tmp_path):
    inputs, family = measured(tiny("flux"), tmp_path / "inputs.safetensors"), "flux"
    files, made = {"original": tiny(family), "lora": loras(family), "family": family}, {}
    for fold in ("auto", "off"):
        made[fold] = tmp_path / f"{fold}.safetensors"
        options = {"calibration_data": str(inputs), "fold": fold, "simple": True}
        convert_to_int8(str(tiny(family)), str(made[fold]), **options)
    folded, unfolded = (packed.call("loading", "lora_error", **files, file=made[f]) for f in ("auto", "off"))
    assert folded < 1.5 * unfolded < 0.3
    assert stock.call("loading", "lora_error", **files, file=made["auto"]) > 2 * folded


def test_what_cannot_be_folded_is_refused(packed, folded_files, tmp_path):
    module = "diffusion_model.double_blocks.0.img_attn.proj"
    pair = low_rank(module, 256, 256)[0]
    dora = save_lora(tmp_path / "dora.safetensors", {**pair, f"{module}.dora_scale": torch.ones(256, 1)})
    with pytest.raises(RuntimeError, match=r"DoRA.*cannot be folded.*--merge-lora"):
        packed.call("loading", "latents", path=folded_files("flux"), family="flux", lora=dora)
