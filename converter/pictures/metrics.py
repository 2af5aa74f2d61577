"""How far two pictures are from each other."""

import torch
import torch.nn.functional as F

WINDOW, SIGMA = 11, 1.5


def psnr(a: torch.Tensor, b: torch.Tensor) -> float | None:
    """Return 10 log10(1 / mean squared difference) of pictures in 0 to 1, any shape; None for equal ones."""
    error = (a.double() - b.double()).square().mean()
    return None if error == 0 else float(-10 * torch.log10(error))


def ssim(a: torch.Tensor, b: torch.Tensor) -> float | None:
    """Return the structural similarity of pictures [B, H, W, C] in 0 to 1, 1 for equal ones.

    Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004): Gaussian
    windows of 11 x 11 that lie inside the picture, means over them and the channels. None where none does.
    """
    if min(a.shape[1:3]) < WINDOW:
        return None
    x, y = (t.double().permute(0, 3, 1, 2) for t in (a, b))
    mean_x, mean_y = _local(x), _local(y)
    var_x, var_y = _local(x * x) - mean_x.square(), _local(y * y) - mean_y.square()
    cov = _local(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    return float((likeness / ((mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2))).mean())


def _local(x: torch.Tensor) -> torch.Tensor:
    """Return the Gaussian means of [B, C, H, W] in every window, [B, C, H - 10, W - 10]."""
    at = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weight = torch.exp(-at.square() / (2 * SIGMA**2))
    weight = weight / weight.sum()
    channels = x.shape[1]
    down = weight.view(1, 1, WINDOW, 1).expand(channels, 1, WINDOW, 1)
    across = weight.view(1, 1, 1, WINDOW).expand(channels, 1, 1, WINDOW)
    return F.conv2d(F.conv2d(x, down, groups=channels), across, groups=channels)
