"""Tiny models of the families that ComfyUI detects by shapes alone, with random weights, in its own names."""

import comfy.ops
import torch
from safetensors.torch import save_file


def flux():
    from comfy.ldm.flux.model import Flux

    return Flux(
        in_channels=16,
        out_channels=16,
        vec_in_dim=768,
        context_in_dim=256,
        hidden_size=256,
        mlp_ratio=4.0,
        num_heads=2,
        depth=1,
        depth_single_blocks=1,
        axes_dim=[16, 56, 56],
        theta=10000,
        patch_size=2,
        qkv_bias=True,
        guidance_embed=True,
        txt_ids_dims=[],
        **_common(),
    )


def _common():
    return {
        "image_model": None,
        "dtype": torch.float32,
        "device": "cpu",
        "operations": comfy.ops.disable_weight_init,
    }


def build(name, path, dtype="bfloat16", seed=0):
    """Write the family's tiny model; heavy-tailed weights, so that quantization has something to lose."""
    model = globals()[name]()
    g = torch.Generator().manual_seed(seed)
    state = {}
    for key, tensor in model.state_dict().items():
        if tensor.dim() >= 2:
            t = torch.randn(tensor.shape, generator=g) * tensor[0].numel() ** -0.5
            t[:, 0] *= 4
        elif key.endswith(("scale", "weight")):
            t = 1 + 0.1 * torch.randn(tensor.shape, generator=g)
        else:
            t = 0.02 * torch.randn(tensor.shape, generator=g)
        state[key] = t.to(getattr(torch, dtype))
    save_file(state, path)
    return sorted(state)
