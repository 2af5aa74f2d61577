"""A LoRA made for a model, as a LoRA for its folded file: the pictures of the model with the LoRA in it."""

import pytest
import torch
from foldable import FAMILIES, uneven
from lora_files import low_rank, save_lora
from models import save
from safetensors.torch import load_file

from convert_to_quant.converter.cli.main import main
from convert_to_quant.converter.edit.fold_lora import fold_lora
from convert_to_quant.formats.errors import ConversionError
from convert_to_quant.runtime import load_quantized
from folding import folded, merged, record, save_model


def outputs(made, path, batches):
    model = made.build().eval().requires_grad_(False)
    load_quantized(model, path)
    return torch.cat([made.run(model, batch).flatten() for batch in batches])


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """A Flux, its folded floats, a LoRA of modules that diffusers keeps apart, and inputs."""
    folder, made = tmp_path_factory.mktemp("flux"), FAMILIES["flux"]
    model, g = uneven("flux"), torch.Generator().manual_seed(1)
    batches = [made.inputs(g) for _ in range(4)]
    source = save_model(model, folder / "m.safetensors")
    tensors, plan = folded(source, record(model, batches, folder / "c.safetensors"))
    file = save(folder / "folded.safetensors", tensors, dict(plan.metadata))
    parts = low_rank("lora_te_text_model_x", 8, 8, style="down up")[0]
    single, double = "single_transformer_blocks.0", "transformer_blocks.0"
    for i, layer in enumerate(
        (
            f"{double}.attn.to_k",
            f"{double}.attn.to_v",
            f"{double}.norm1.linear",
            f"{single}.proj_out",
            "x_embedder",
        )
    ):
        shape = model.get_submodule(layer).weight.shape
        parts |= low_rank(f"transformer.{layer}", *shape, seed=i, alpha=8)[0]
    return made, source, file, save_lora(folder / "lora.safetensors", parts), batches


def test_a_folded_lora_does_in_a_folded_file_what_it_did(flux, tmp_path, capsys):
    made, source, file, lora, batches = flux
    output = tmp_path / "for-folded.safetensors"
    assert main(["edit", str(file), "--fold-lora", str(lora), "-o", str(output)]) == 0
    assert "folded in 3 layers" in capsys.readouterr().out
    want = outputs(made, save(tmp_path / "want.safetensors", merged(source, lora)), batches)
    plain = outputs(made, source, batches)
    got, unfolded = (
        outputs(made, save(tmp_path / f"{i}.safetensors", merged(file, path)), batches)
        for i, path in enumerate((output, lora))
    )
    effect = (want - plain).norm()
    assert effect > 0.01 * want.norm(), "the LoRA does nothing: no test"
    assert (got - want).norm() < 1e-4 * effect
    assert (unfolded - want).norm() > 0.1 * effect
    kept = load_file(output)
    assert "lora_te_text_model_x.lora_down.weight" in kept
    assert "transformer.x_embedder.lora_down.weight" in kept


def test_what_cannot_be_folded_is_refused(flux, tmp_path):
    _, source, file, lora, _ = flux
    with pytest.raises(ConversionError, match="is not folded: the LoRA fits it as it is"):
        fold_lora(str(lora), str(source), str(tmp_path / "x.safetensors"))
    whole = {"transformer.transformer_blocks.0.attn.to_out.0.diff": torch.zeros(128, 128)}
    other = save_lora(tmp_path / "diff.safetensors", whole)
    with pytest.raises(ConversionError, match=r"no plain low-rank change.*--merge-lora"):
        fold_lora(str(other), str(file), str(tmp_path / "x.safetensors"))
    with pytest.raises(SystemExit):
        main(["edit", str(file), "--fold-lora", str(lora), "--dry-run"])
