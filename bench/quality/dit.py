"""A small Flux of diffusers' own class, trained here on pictures of discs and squares, and what it paints.

It stands for the models that people convert: adaLN modulation, joint and single blocks, values and MLPs as
they have them, under names that the converter recognises. One to ten minutes of two cores train it; a folder
keeps it for another run.
"""

import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

sys.modules.setdefault(
    "kernels", None
)  # not this repository's folder, which diffusers would take for a package
import diffusers  # noqa: E402

SIDE, PATCH, WORDS, STEPS = 12, 2, 4, 20
TRAINING = 1000
"""Optimizer steps; the loss falls from 1.3 to about 0.25, and shapes and colours are right."""

_COLOURS = torch.tensor([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1.0]])
_VOCABULARY = torch.randn(18, 32, generator=torch.Generator().manual_seed(3))


def build() -> torch.nn.Module:
    """Return the model with weights of its class's own making."""
    return diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=3 * PATCH**2,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=64,
        num_attention_heads=4,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=False,
        axes_dims_rope=(16, 24, 24),
    )


_CHOICES = (2, 6, 6, 4)


def captions(count: int, g: torch.Generator) -> torch.Tensor:
    """Draw captions: a shape, its colour, that of the ground, a quarter; int64 [count, 4]."""
    return (torch.rand(count, WORDS, generator=g) * torch.tensor(_CHOICES)).long()


def every_caption() -> torch.Tensor:
    """Return all that `captions` draws from, int64 [288, 4]."""
    return torch.cartesian_prod(*map(torch.arange, _CHOICES))


def pictures(words: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Paint pictures of captions, [count, 3, SIDE, SIDE] from -1 to 1: no two alike."""
    shape, colour, ground, quarter = words.unbind(1)
    jitter = torch.rand(len(words), 3, generator=g)
    rows = torch.arange(SIDE).view(1, -1, 1) - (3 + 6 * (quarter // 2) + jitter[:, 0] * 2 - 1).view(-1, 1, 1)
    columns = torch.arange(SIDE).view(1, 1, -1) - (3 + 6 * (quarter % 2) + jitter[:, 1] * 2 - 1).view(
        -1, 1, 1
    )
    distance = torch.where(
        shape.view(-1, 1, 1) == 0, (rows**2 + columns**2).sqrt(), torch.maximum(rows.abs(), columns.abs())
    )
    inside = torch.sigmoid(3 * (2 + jitter[:, 2].view(-1, 1, 1) - distance)).unsqueeze(1)
    shade = torch.linspace(0.4, 0.8, SIDE).view(1, 1, -1, 1)
    return inside * _COLOURS[colour].view(-1, 3, 1, 1) + (1 - inside) * shade * _COLOURS[ground].view(
        -1, 3, 1, 1
    )


def _patches(x: torch.Tensor) -> torch.Tensor:
    n = SIDE // PATCH
    return x.view(-1, 3, n, PATCH, n, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(len(x), n * n, -1)


def _ids() -> torch.Tensor:
    n = SIDE // PATCH
    grid = torch.cartesian_prod(torch.arange(n), torch.arange(n)).float()
    return torch.cat([torch.zeros(n * n, 1), grid], 1)


def call(model: torch.nn.Module, x: torch.Tensor, words: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return the model's velocity for patches [B, tokens, 12] at times t [B]."""
    return denoise(model, x, embedded(words), t)


def embedded(words: torch.Tensor) -> torch.Tensor:
    """Return what the model is told of captions, [B, WORDS, 32]."""
    return _VOCABULARY[words + torch.tensor([0, 2, 8, 14])]


def denoise(model: torch.nn.Module, x: torch.Tensor, text: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return what `call` does, of captions that are embedded already."""
    return model(
        hidden_states=x,
        encoder_hidden_states=text,
        pooled_projections=text.mean(1),
        timestep=t,
        img_ids=_ids(),
        txt_ids=torch.zeros(WORDS, 3),
        return_dict=False,
    )[0]


def train(path: Path, steps: int = TRAINING) -> torch.nn.Module:
    """Return the trained model, from `path` where it has been before."""
    torch.manual_seed(0)
    model = build()
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model.eval().requires_grad_(False)
    g, began = torch.Generator().manual_seed(1), time.time()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps)
    for step in range(steps):
        words = captions(6, g)
        clean = _patches(pictures(words, g))
        noise, t = torch.randn(clean.shape, generator=g), torch.rand(len(words), generator=g)
        mixed = torch.lerp(clean, noise, t.view(-1, 1, 1))
        loss = (call(model, mixed, words, t) - (noise - clean)).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"training: step {step}, loss {loss.item():.3f}, {time.time() - began:.0f} s", flush=True)
    save_file({n: p.detach().contiguous() for n, p in model.state_dict().items()}, path, {"format": "pt"})
    return model.eval().requires_grad_(False)


def noise(count: int, seed: int) -> torch.Tensor:
    """Return normal numbers, patches [count, tokens, 12]."""
    n = (SIDE // PATCH) ** 2
    return torch.randn(count, n, 3 * PATCH**2, generator=torch.Generator().manual_seed(seed))


def paint(model: torch.nn.Module, words: torch.Tensor, seed: int) -> torch.Tensor:
    """Return what STEPS of Euler's method make of noise, patches [B, tokens, 12]."""
    return sample(model, embedded(words), seed)


def sample(model: torch.nn.Module, text: torch.Tensor, seed: int) -> torch.Tensor:
    """Return what `paint` does, of captions that are embedded already."""
    x = noise(len(text), seed)
    with torch.no_grad():
        for i in range(STEPS):
            x = x - denoise(model, x, text, torch.full((len(text),), 1 - i / STEPS)) / STEPS
    return x


def psnr(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Return the peak signal to noise ratio of each picture from -1 to 1, dB, float64 [B]."""
    return 10 * torch.log10(4 / (got.double() - want.double()).square().flatten(1).mean(1))
