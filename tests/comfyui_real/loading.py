"""What real ComfyUI makes of a file: its loader, its LoRAs, its sampler."""

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


def latents(path, family, lora=None, offloaded=False):
    """Sample one step with a model; returns float32 latents.

    offloaded: nothing of it stays on the device, and a LoRA is added to each weight as it is used.
    """
    patcher = comfy.sd.load_diffusion_model(path)
    if lora is not None:
        patcher, _ = comfy.sd.load_lora_for_models(patcher, None, comfy.utils.load_torch_file(lora), 1.0, 0)
    g = torch.Generator().manual_seed(5)
    cond = torch.randn(1, 8, WIDTH[family], generator=g)
    pooled = torch.randn(1, 2048 if family == "sd3" else 768, generator=g)
    form = patcher.model.latent_format
    shape = (1, form.latent_channels, *(1,) * (form.latent_dimensions - 2), 8, 8)
    positive = [[cond, {"pooled_output": pooled, "attention_mask": torch.ones(1, 8)}]]
    if offloaded:
        load = patcher.partially_load
        patcher.partially_load = lambda device, extra=0, *a, **k: load(device, 1, *a, **k)
    noise = torch.randn(shape, generator=g)
    out = comfy.sample.sample(
        patcher, noise, 1, 1.0, "euler", "simple", positive, positive, torch.zeros(shape), disable_pbar=True
    )
    return out.float()


def quality(original, quantized, family, lora=None, offloaded=False):
    """Return the SQNR, in dB, of what a quantized file samples against the float file."""
    key = original, lora
    if key not in _FLOAT:
        _FLOAT[key] = latents(original, family, lora)
    want, got = _FLOAT[key], latents(quantized, family, lora, offloaded)
    error = (got - want).square().sum()
    return float(10 * torch.log10(want.square().sum() / error)) if error else 999.0
