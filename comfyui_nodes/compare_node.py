"""The node that samples two models alike and shows where they differ."""

import time
from typing import Any

import torch


class CompareModels:
    """Samples two models with one setting: images side by side with their difference, and figures."""

    CATEGORY, FUNCTION, OUTPUT_NODE = "convert_to_quant", "compare", True
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", "STRING"), ("image", "figures")
    DESCRIPTION = (
        "Samples the reference and the candidate with the same seed and settings. The image shows the "
        "reference, the candidate and their amplified difference; the figures are the SQNR of the latents, "
        "with a VAE also the PSNR of the images, and the seconds that each took."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the node's inputs, as ComfyUI asks for them."""
        from comfy.samplers import KSampler

        return {
            "required": {
                "reference": ("MODEL",),
                "candidate": ("MODEL",),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "seed": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF}),
                "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
                "cfg": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 100.0, "step": 0.1}),
                "sampler_name": (list(KSampler.SAMPLERS),),
                "scheduler": (list(KSampler.SCHEDULERS),),
                "amplify": ("FLOAT", {"default": 8.0, "min": 1.0, "max": 100.0, "step": 0.5}),
            },
            "optional": {"vae": ("VAE",)},
        }

    def compare(
        self,
        reference: Any,
        candidate: Any,
        positive: Any,
        negative: Any,
        latent_image: Any,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        amplify: float,
        vae: Any = None,
    ) -> dict[str, Any]:
        """Sample both, and show them."""
        from nodes import common_ksampler

        made, took = [], []
        for model in (reference, candidate):
            start = time.perf_counter()
            arguments = model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image
            made.append(common_ksampler(*arguments)[0]["samples"])
            took.append(time.perf_counter() - start)
        lines = [f"latents: {decibels(made[0], made[1] - made[0]):.1f} dB SQNR"]
        images = [pictures(latents, vae) for latents in made]
        if vae is not None:
            peak = torch.ones_like(images[0])
            lines.append(f"images: {decibels(peak, images[1] - images[0]):.1f} dB PSNR")
        lines.append(f"reference {took[0]:.1f} s, candidate {took[1]:.1f} s")
        difference = ((images[1] - images[0]).abs() * amplify).clamp(0, 1)
        image = torch.cat((*images, difference), dim=2)
        return {"ui": {"text": lines}, "result": (image, "\n".join(lines))}


def decibels(signal: torch.Tensor, error: torch.Tensor) -> float:
    """Return ten times the logarithm of the ratio of two energies; infinity without an error."""
    noise = float(error.double().square().sum())
    return float("inf") if noise == 0 else float(10 * torch.log10(signal.double().square().sum() / noise))


def pictures(latents: torch.Tensor, vae: Any) -> torch.Tensor:
    """Return images [B, H, W, 3] from 0 to 1: decoded, or without a VAE the first channels as they are."""
    if vae is not None:
        images = vae.decode(latents)
        return images.reshape(-1, *images.shape[-3:])[..., :3].float().cpu().clamp(0, 1)
    frames = latents.float().cpu().movedim(1, -1)
    frames = frames.reshape(-1, *frames.shape[-3:])[..., :3]
    frames = frames.expand(*frames.shape[:-1], 3) if frames.shape[-1] == 1 else frames
    return (frames / 6 + 0.5).clamp(0, 1)
