"""Tiny random models of the families that ComfyUI recognises by shapes alone, in its own names."""

import comfy.ops
import torch
from safetensors.torch import save_file

WIDTH = {"flux": 256, "flux2": 256, "hunyuan_video": 256, "ltxv": 4096, "wan": 4096, "sd3": 4096}
"""Columns of the conditioning that each takes."""


def flux(**more):
    from comfy.ldm.flux.model import Flux

    own = {
        "in_channels": 16,
        "out_channels": 16,
        "vec_in_dim": 768,
        "context_in_dim": WIDTH["flux"],
        "hidden_size": 256,
        "mlp_ratio": 4.0,
        "num_heads": 2,
        "depth": 1,
        "depth_single_blocks": 1,
        "axes_dim": [16, 56, 56],
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": True,
        "txt_ids_dims": [],
    }
    return Flux(**{**own, **more}, **_common())


def flux2():
    return flux(
        in_channels=128,
        out_channels=128,
        vec_in_dim=None,
        mlp_ratio=3.0,
        axes_dim=[32, 32, 32, 32],
        theta=2000,
        patch_size=1,
        qkv_bias=False,
        ops_bias=False,
        global_modulation=True,
        mlp_silu_act=True,
        txt_ids_dims=[3],
    )


def hunyuan_video():
    from comfy.ldm.hunyuan_video.model import HunyuanVideo

    return HunyuanVideo(
        in_channels=16,
        out_channels=16,
        vec_in_dim=768,
        context_in_dim=WIDTH["hunyuan_video"],
        hidden_size=256,
        mlp_ratio=4.0,
        num_heads=2,
        depth=1,
        depth_single_blocks=1,
        axes_dim=[16, 56, 56],
        theta=256,
        patch_size=[1, 2, 2],
        qkv_bias=True,
        guidance_embed=True,
        byt5=False,
        meanflow=False,
        use_cond_type_embedding=False,
        vision_in_dim=None,
        meanflow_sum=False,
        **_common(),
    )


def ltxv():
    from comfy.ldm.lightricks.model import LTXVModel

    return LTXVModel(num_layers=2, attention_head_dim=8, cross_attention_dim=256, **_common("image_model"))


def wan():
    from comfy.ldm.wan.model import WanModel

    return WanModel(dim=256, ffn_dim=512, num_heads=2, num_layers=2, **_common())


def sd3():
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT

    context = {"target": "torch.nn.Linear", "params": {"in_features": WIDTH["sd3"], "out_features": 256}}
    return MMDiT(
        input_size=None,
        in_channels=16,
        depth=4,
        adm_in_channels=2048,
        context_embedder_config=context,
        num_patches=64,
        pos_embed_max_size=8,
        qk_norm="rms",
        **_common("image_model"),
    )


def _common(*without):
    own = {"image_model": None, "dtype": torch.float32, "device": "cpu"}
    own["operations"] = comfy.ops.disable_weight_init
    return {name: value for name, value in own.items() if name not in without}


def build(name, path, dtype="bfloat16", seed=0):
    """Write a family's tiny model; some columns are large, so that a lost scale or rotation shows."""
    g = torch.Generator().manual_seed(seed)
    state = {}
    for key, tensor in globals()[name]().state_dict().items():
        if tensor.dim() >= 2:
            t = torch.randn(tensor.shape, generator=g) * tensor[0].numel() ** -0.5
            t[:, :1] *= 4
        else:
            gain = key.endswith(("scale", "weight"))
            t = (1.0 if gain else 0.0) + 0.1 * torch.randn(tensor.shape, generator=g)
        state[key] = t.to(getattr(torch, dtype))
    save_file(state, path)
    return len(state)


def lora(path, target, rank=4, seed=1):
    """Write a LoRA for every two-dimensional block weight of a file, in the names that ComfyUI's own have."""
    from safetensors import safe_open

    g = torch.Generator().manual_seed(seed)
    state = {}
    with safe_open(path, "pt") as file:
        for key in list(file.keys()):  # the file itself cannot be iterated
            shape = file.get_slice(key).get_shape()
            if "blocks." in key and key.endswith(".weight") and len(shape) == 2:
                name = f"diffusion_model.{key.removesuffix('.weight')}"
                state[f"{name}.lora_A.weight"] = torch.randn(rank, shape[1], generator=g) * 0.1
                state[f"{name}.lora_B.weight"] = torch.randn(shape[0], rank, generator=g) * 0.02
    save_file(state, target)
    return len(state) // 2
