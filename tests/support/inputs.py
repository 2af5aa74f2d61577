"""Test inputs that several modules share."""

import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
GROUPS = (4, 16, 64, 256, 1024)

SHAPES = ((1, 1), (1, 7), (5, 123), (123, 123), (3, 5, 123), (2, 3, 4, 128), (77,), (129, 257))
"""Odd sizes, one to four axes, a single element."""


def short(value: object) -> str:
    """A readable id: dtypes without their module, shapes as 5x123, tensors as int8[5x123]."""
    if isinstance(value, torch.Tensor):
        return f"{short(value.dtype)}[{short(tuple(value.shape))}]"
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, tuple):
        whole_numbers = all(isinstance(v, int) for v in value)
        return ("x" if whole_numbers else " ").join(map(short, value)) or "scalar"
    return str(value)


def heavy(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Weights as they are: normal, with outlier columns and a few rows a thousand times smaller."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g)
    x = x * torch.where(torch.rand(shape[-1:], generator=g) < 0.03, 12.0, 1.0)
    if len(shape) > 1:
        x = x * torch.where(torch.rand((*shape[:-1], 1), generator=g) < 0.1, 1e-3, 1.0)
    return x.to(dtype)


def whole(*shape: int, high: int = 8, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Small whole numbers: their rotation is exact in float32, so results must be equal bit for bit."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-high, high + 1, shape, generator=g).to(dtype)


def int8(*shape: int, seed: int = 0) -> torch.Tensor:
    """Integers over the whole range [-127, 127]."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, shape, generator=g, dtype=torch.int8)


def strided(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same values in memory that is not contiguous."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 3), 99, dtype=x.dtype)
    wide[..., 1 : 2 * x.shape[-1] : 2] = x
    views = {"every second column": wide[..., 1 : 2 * x.shape[-1] : 2]}
    padded = torch.full((*x.shape[:-1], x.shape[-1] + 5), 99, dtype=x.dtype)
    padded[..., 2:-3] = x
    views["columns of a wider tensor"] = padded[..., 2:-3]
    if x.dim() > 1:
        views["transposed"] = x.transpose(-1, -2).contiguous().transpose(-1, -2)
        views["every third row"] = x.repeat_interleave(3, 0)[::3]
    return views
