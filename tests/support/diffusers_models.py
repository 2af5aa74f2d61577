"""Models of diffusers' own classes, small enough for tests: what people give to a conversion as they are."""

from functools import cache
from pathlib import Path

import torch
from models import save
from peers import peer

diffusers = peer("diffusers")

TINY = {
    "flux": (
        "FluxTransformer2DModel",
        {
            "patch_size": 1,
            "in_channels": 16,
            "num_layers": 2,
            "num_single_layers": 2,
            "attention_head_dim": 64,
            "num_attention_heads": 2,
            "joint_attention_dim": 48,
            "pooled_projection_dim": 32,
            "guidance_embeds": True,
            "axes_dims_rope": (16, 24, 24),
        },
    ),
    "flux2": (
        "Flux2Transformer2DModel",
        {
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 64,
            "num_attention_heads": 2,
            "joint_attention_dim": 48,
            "timestep_guidance_channels": 32,
            "axes_dims_rope": (16, 16, 16, 16),
        },
    ),
    "sd3": (
        "SD3Transformer2DModel",
        {
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 64,
            "num_attention_heads": 2,
            "joint_attention_dim": 48,
            "caption_projection_dim": 128,
            "pooled_projection_dim": 32,
            "pos_embed_max_size": 8,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
    ),
    "auraflow": (
        "AuraFlowTransformer2DModel",
        {
            "sample_size": 8,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "attention_head_dim": 32,
            "num_attention_heads": 4,
            "joint_attention_dim": 48,
            "caption_projection_dim": 128,
            "pos_embed_max_size": 16,
        },
    ),
    "pixart": (
        "PixArtTransformer2DModel",
        {
            "num_attention_heads": 4,
            "attention_head_dim": 32,
            "num_layers": 1,
            "cross_attention_dim": 128,
            "caption_channels": 48,
            "sample_size": 8,
            "use_additional_conditions": True,
        },
    ),
    "z-image": (
        "ZImageTransformer2DModel",
        {
            "in_channels": 4,
            "dim": 128,
            "n_layers": 1,
            "n_refiner_layers": 1,
            "n_heads": 4,
            "n_kv_heads": 4,
            "cap_feat_dim": 48,
            "axes_dims": [8, 12, 12],
            "axes_lens": [64, 32, 32],
        },
    ),
    "wan": (
        "WanTransformer3DModel",
        {
            "num_attention_heads": 4,
            "attention_head_dim": 32,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 48,
            "freq_dim": 32,
            "ffn_dim": 128,
            "num_layers": 1,
            "cross_attn_norm": True,
            "rope_max_seq_len": 32,
        },
    ),
    "qwen-image": (
        "QwenImageTransformer2DModel",
        {
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 1,
            "attention_head_dim": 32,
            "num_attention_heads": 4,
            "joint_attention_dim": 48,
            "axes_dims_rope": (8, 12, 12),
        },
    ),
    "sdxl": (
        "UNet2DConditionModel",
        {
            "block_out_channels": (32, 64),
            "layers_per_block": 2,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 64,
            "transformer_layers_per_block": (1, 2),
            "attention_head_dim": 16,
            "norm_num_groups": 8,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 64,
        },
    ),
    "svd": (
        "UNetSpatioTemporalConditionModel",
        {
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "down_block_types": ("DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"),
            "up_block_types": ("CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal"),
            "cross_attention_dim": 64,
            "num_attention_heads": (2, 2),
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24,
        },
    ),
}
"""Name -> (class, its sizes)."""


def build(name: str) -> torch.nn.Module:
    """A model of TINY, on the device that is set."""
    kind, sizes = TINY[name]
    return getattr(diffusers, kind)(**sizes)


@cache
def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {k: tuple(v.shape) for k, v in build(name).state_dict().items()}


def weights(name: str, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """Seeded values for every tensor of a model, by diffusers' names."""
    g = torch.Generator().manual_seed(5)
    return {k: (torch.randn(s, generator=g) * 0.05).to(dtype) for k, s in _shapes(name).items()}


def save_diffusers(folder: Path, name: str) -> Path:
    """Write a model as diffusers would name it; returns the file."""
    return save(folder / f"{name}.safetensors", weights(name), {"format": "pt"})
