"""LPIPS, the distance of two pictures as people see it, where its package and weights are on this machine.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018), on AlexNet.
"""

from collections.abc import Callable
from pathlib import Path

import torch

Meter = Callable[[torch.Tensor, torch.Tensor], float | None]

LEAST = 64
"""Pixels that a picture must have each way: AlexNet's last features would be empty below."""


def lpips_meter() -> Meter | None:
    """Return what measures two pictures [B, H, W, C] in 0 to 1: 0 for equal ones, None where they are small.

    None without the package ``lpips``, and where AlexNet's weights are not in torch's cache, or damaged:
    nothing is downloaded, and pictures that are made already are not lost for it.
    """
    try:
        import lpips
        from torchvision.models import AlexNet_Weights
    except (ImportError, RuntimeError):  # RuntimeError: a torchvision that was built for another torch
        return None
    file = AlexNet_Weights.DEFAULT.url.rpartition("/")[2]
    if not (Path(torch.hub.get_dir()) / "checkpoints" / file).is_file():
        return None
    try:
        model = lpips.LPIPS(net="alex", verbose=False).eval()
    except Exception:  # a damaged file may end in anything
        return None

    @torch.no_grad()
    def measure(a: torch.Tensor, b: torch.Tensor) -> float | None:
        if min(a.shape[1:3]) < LEAST:
            return None
        x, y = (t.float().permute(0, 3, 1, 2).expand(-1, 3, -1, -1) * 2 - 1 for t in (a, b))
        return float(model(x, y).mean())

    return measure
