"""Small models of diffusers' own classes, one per family of the tables of names, and inputs for them."""

import torch
from diffusers_models import TINY as THEIRS
from diffusers_models import diffusers


def flux(**changes) -> torch.nn.Module:
    sizes = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 32,
        "num_attention_heads": 4,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 32,
        "guidance_embeds": True,
        "axes_dims_rope": (8, 12, 12),
    }
    return diffusers.FluxTransformer2DModel(**{**sizes, **changes})


def flux_inputs(g: torch.Generator) -> dict:
    return {
        "hidden_states": torch.randn(1, 12, 16, generator=g),
        "encoder_hidden_states": torch.randn(1, 5, 64, generator=g),
        "pooled_projections": torch.randn(1, 32, generator=g),
        "timestep": torch.tensor([0.7]),
        "guidance": torch.tensor([3.5]),
        "img_ids": torch.rand(12, 3, generator=g),
        "txt_ids": torch.zeros(5, 3),
    }


def qwen_image(**changes) -> torch.nn.Module:
    sizes = {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 1,
        "attention_head_dim": 32,
        "num_attention_heads": 4,
        "joint_attention_dim": 64,
        "axes_dims_rope": (8, 12, 12),
    }
    return diffusers.QwenImageTransformer2DModel(**{**sizes, **changes})


def qwen_image_inputs(g: torch.Generator) -> dict:
    return {
        "hidden_states": torch.randn(1, 16, 16, generator=g),
        "encoder_hidden_states": torch.randn(1, 5, 64, generator=g),
        "encoder_hidden_states_mask": torch.ones(1, 5, dtype=torch.bool),
        "timestep": torch.tensor([0.7]),
        "img_shapes": [(1, 4, 4)],
    }


def z_image() -> torch.nn.Module:
    return diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=128,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=64,
        axes_dims=[8, 12, 12],
        axes_lens=[64, 32, 32],
    )


def z_image_inputs(g: torch.Generator) -> dict:
    return {
        "x": [torch.randn(4, 1, 8, 8, generator=g)],
        "t": torch.tensor([0.7]),
        "cap_feats": [torch.randn(5, 64, generator=g)],
    }


def wan(**changes) -> torch.nn.Module:
    sizes = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 4,
        "attention_head_dim": 32,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 64,
        "freq_dim": 64,
        "ffn_dim": 256,
        "num_layers": 1,
        "cross_attn_norm": True,
        "image_dim": 64,
        "added_kv_proj_dim": 128,
        "rope_max_seq_len": 32,
    }
    return diffusers.WanTransformer3DModel(**{**sizes, **changes})


def wan_inputs(g: torch.Generator) -> dict:
    return {
        "hidden_states": torch.randn(1, 4, 2, 8, 8, generator=g),
        "timestep": torch.tensor([700]),
        "encoder_hidden_states": torch.randn(1, 5, 64, generator=g),
        "encoder_hidden_states_image": torch.randn(1, 3, 64, generator=g),
    }


MODELS = {
    "flux": (flux, flux_inputs, "double_blocks.0.img_attn.qkv.weight"),
    "qwen-image": (qwen_image, qwen_image_inputs, "transformer_blocks.0.attn.to_q.weight"),
    "z-image": (z_image, z_image_inputs, "layers.0.attention.qkv.weight"),
    "wan": (wan, wan_inputs, "blocks.0.self_attn.q.weight"),
}


def randomized(build) -> torch.nn.Module:
    """Weights that matter: some of diffusers' own are zero or one."""
    torch.manual_seed(0)
    model = build().eval().requires_grad_(False)
    for name, p in model.named_parameters():
        p.copy_(
            torch.randn_like(p) * (0.1 if p.dim() > 1 else 0.3)
            + (1.0 if "norm" in name and p.dim() == 1 else 0)
        )
    return model


def output(model, inputs: dict) -> torch.Tensor:
    with torch.no_grad():
        out = model(**inputs, return_dict=False)[0]
    return out[0] if isinstance(out, list) else out


def sqnr(got, want) -> float:
    return float(10 * torch.log10(want.float().square().sum() / (got.float() - want.float()).square().sum()))


MORE = {
    "ltx-video": (
        "LTXVideoTransformer3DModel",
        {
            "in_channels": 16,
            "out_channels": 16,
            "num_attention_heads": 4,
            "attention_head_dim": 32,
            "cross_attention_dim": 128,
            "num_layers": 1,
            "caption_channels": 48,
        },
    ),
    "hunyuan-video": (
        "HunyuanVideoTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 64,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "text_embed_dim": 48,
            "pooled_projection_dim": 32,
            "rope_axes_dim": (16, 24, 24),
        },
    ),
    "lumina2": (
        "Lumina2Transformer2DModel",
        {
            "sample_size": 8,
            "in_channels": 4,
            "hidden_size": 128,
            "num_layers": 1,
            "num_refiner_layers": 1,
            "num_attention_heads": 4,
            "num_kv_heads": 4,
            "cap_feat_dim": 48,
            "axes_dim_rope": (8, 12, 12),
            "axes_lens": (64, 32, 32),
        },
    ),
    "chroma": (
        "ChromaTransformer2DModel",
        {
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 64,
            "num_attention_heads": 2,
            "joint_attention_dim": 48,
            "axes_dims_rope": (16, 24, 24),
            "approximator_num_channels": 16,
            "approximator_hidden_dim": 64,
            "approximator_layers": 1,
        },
    ),
}
"""Families without inputs that `diffusers_models` does not have: (class, its sizes)."""

TINY = {**{k: v for k, v in THEIRS.items() if "UNet" not in v[0] and k not in MODELS}, **MORE}
"""More families of transformers, without inputs."""


def builder(family: str, **changes):
    """A function that makes the family's model. changes: of sizes, for those of `TINY`."""
    if family in MODELS:
        return MODELS[family][0]
    kind, sizes = TINY[family]
    return lambda: getattr(diffusers, kind)(**{**sizes, **changes})


def wide(family: str, **changes) -> torch.nn.Module:
    """The family's model with heads as wide as the released model's, 24 of 128 where nothing else is said."""
    kind, sizes = {**THEIRS, **MORE}[family]
    sizes = {**sizes, "num_attention_heads": 24, **changes}
    if "attention_head_dim" in sizes:
        sizes["attention_head_dim"] = 128
    return getattr(diffusers, kind)(**sizes)
