"""Nodes that only these tests need, where a real workflow has a text encoder and a VAE."""

import gc
import os

import comfy.model_base
import folder_paths
import torch
from aiohttp import web
from server import PromptServer


@PromptServer.instance.routes.get("/test/models")
async def models(request):
    """How many diffusion models are in memory."""
    gc.collect()
    return web.json_response(sum(isinstance(o, comfy.model_base.BaseModel) for o in gc.get_objects()))


class Conditioning:
    """Random conditioning of the given width, the same for the same seed."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "make", ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {k: ("INT", {"default": 1}) for k in ("seed", "tokens", "width", "pooled")}}

    def make(self, seed, tokens, width, pooled):
        g = torch.Generator().manual_seed(seed)
        cond = torch.randn(1, tokens, width, generator=g)
        return ([[cond, {"pooled_output": torch.randn(1, pooled, generator=g)}]],)


class KeepLatent:
    """Write the samples to output/NAME.pt."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "test", "keep", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"latent": ("LATENT",), "name": ("STRING", {})}}

    def keep(self, latent, name):
        torch.save(latent["samples"], os.path.join(folder_paths.get_output_directory(), name + ".pt"))
        return {}


class CountHooks:
    """Tell how many forward hooks a model's layers have."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "test", "count", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "after": ("LATENT",)}}

    def count(self, model, after):
        hooks = sum(len(m._forward_pre_hooks) for m in model.model.diffusion_model.modules())
        return {"ui": {"text": [str(hooks)]}}


NODE_CLASS_MAPPINGS = {
    "TestConditioning": Conditioning,
    "TestKeepLatent": KeepLatent,
    "TestCountHooks": CountHooks,
}
