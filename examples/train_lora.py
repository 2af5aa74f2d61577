"""Train a LoRA on a quantized base: the base stays INT8, only the adapter has gradients.

    pip install 'convert-to-quant-toolkit[diffusers]'
    python examples/train_lora.py

It makes a small random Flux and trains an adapter that moves its output, so it runs anywhere in seconds. For
a real model replace `base` by ``FluxTransformer2DModel.from_pretrained(PATH, torch_dtype=torch.bfloat16,
quantization_config=CtqConfig())`` and `batch` by your data; the rest stays.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from convert_to_quant.comfy.quant_ops import QuantizedTensor
from convert_to_quant.diffusers import CtqConfig


def base() -> FluxTransformer2DModel:
    """Return a quantized model, loaded as any other."""
    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 32, "num_attention_heads": 4}
    inputs = {"in_channels": 16, "joint_attention_dim": 64, "pooled_projection_dim": 32}
    with tempfile.TemporaryDirectory() as folder:
        FluxTransformer2DModel(**sizes, **inputs, axes_dims_rope=(8, 12, 12)).save_pretrained(folder)
        return FluxTransformer2DModel.from_pretrained(folder, quantization_config=CtqConfig())


def batch() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return inputs and the output that is wanted for them."""
    inputs = {
        "hidden_states": torch.randn(1, 12, 16),
        "encoder_hidden_states": torch.randn(1, 5, 64),
        "pooled_projections": torch.randn(1, 32),
        "timestep": torch.tensor([0.7]),
        "img_ids": torch.zeros(12, 3),
        "txt_ids": torch.zeros(5, 3),
    }
    return inputs, torch.randn(1, 12, 16)


def main() -> None:
    """Train, save the adapter, and check that the base kept its integers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="optimiser steps (default 40)")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the adapter (default: this one)")
    args = parser.parse_args()
    torch.manual_seed(0)

    model = base()
    codes = {n: p._qdata.clone() for n, p in model.named_parameters() if isinstance(p, QuantizedTensor)}
    layers = ["to_q", "to_k", "to_v", "to_out.0", "proj_mlp", "proj_out"]
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=layers))
    model.enable_gradient_checkpointing()
    model.train()

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    inputs, wanted = batch()
    losses = []
    for _ in range(args.steps):
        loss = (model(**inputs, return_dict=False)[0] - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    save_file(get_peft_model_state_dict(model), args.out / "adapter.safetensors")
    found = {n: p for n, p in model.named_parameters() if isinstance(p, QuantizedTensor)}
    kept = zip(codes.values(), found.values(), strict=True)
    assert all(torch.equal(before, after._qdata) for before, after in kept), "the base changed"
    print(f"{len(codes)} quantized weights kept, {sum(p.numel() for p in trained)} numbers trained")
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")


if __name__ == "__main__":
    main()
