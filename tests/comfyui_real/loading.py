"""What real ComfyUI makes of a file: its loader, its LoRAs, its sampler."""

import comfy.hooks
import comfy.sample
import comfy.sd
import comfy.utils
import torch
from families import WIDTH


def with_pack():
    """Let ComfyUI read the formats of the node pack; returns what was not possible."""
    from convert_to_quant.comfyui_nodes.hooks import install

    return [reason for reason in install().values() if reason]


_FLOAT: dict = {}
"""Latents of the float models, by file and LoRA."""


def latents(path, family, lora=None, offloaded=False, way="patched"):
    """Sample one step with a model; returns float32 latents.

    offloaded: nothing of it stays on the device, and a LoRA is added to each weight as it is used. way: how a
    LoRA is added: patched, by a hook, or beside the weights (bypass).
    """
    patcher = comfy.sd.load_diffusion_model(path)
    hooks = None
    if lora is not None and way == "hook":
        own = comfy.utils.load_torch_file(lora)
        patcher, _, hooks = comfy.hooks.load_hook_lora_for_models(patcher, None, own, 1.0, 0)
    elif lora is not None:
        bypass = way == "bypass"
        add = comfy.sd.load_bypass_lora_for_models if bypass else comfy.sd.load_lora_for_models
        patcher, _ = add(patcher, None, comfy.utils.load_torch_file(lora), 1.0, 0)
    g = torch.Generator().manual_seed(5)
    cond = torch.randn(1, 8, WIDTH[family], generator=g)
    pooled = torch.randn(1, 2048 if family == "sd3" else 768, generator=g)
    form = patcher.model.latent_format
    shape = (1, form.latent_channels, *(1,) * (form.latent_dimensions - 2), 8, 8)
    positive = [[cond, {"pooled_output": pooled, "attention_mask": torch.ones(1, 8)}]]
    if hooks is not None:
        positive = comfy.hooks.set_hooks_for_conditioning(positive, hooks)
    if offloaded:
        load = patcher.partially_load
        patcher.partially_load = lambda device, extra=0, *a, **k: load(device, 1, *a, **k)
    noise = torch.randn(shape, generator=g)
    out = comfy.sample.sample(
        patcher, noise, 1, 1.0, "euler", "simple", positive, positive, torch.zeros(shape), disable_pbar=True
    )
    return out.float()


def lora_error(original, file, family, lora, fitted=None, way="patched"):
    """Return how much of what a LoRA does to a model is another in a file of it, a share of its norm.

    fitted: the LoRA for the file, where it is not the same.
    """
    want = latents(original, family, lora) - latents(original, family)
    got = latents(file, family, fitted or lora, way=way) - latents(file, family)
    return float((got - want).norm() / want.norm())


def quality(original, quantized, family, lora=None, offloaded=False):
    """Return the SQNR, in dB, of what a quantized file samples against the float file."""
    key = original, lora
    if key not in _FLOAT:
        _FLOAT[key] = latents(original, family, lora)
    want, got = _FLOAT[key], latents(quantized, family, lora, offloaded)
    error = (got - want).square().sum()
    return float(10 * torch.log10(want.square().sum() / error)) if error else 999.0
