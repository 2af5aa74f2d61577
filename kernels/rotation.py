"""Group-wise regular Hadamard rotation (ConvRot).

Each group of ``g`` neighbouring columns is multiplied by H_g / sqrt(g), where H_g is a
Kronecker power of the regular Hadamard matrix of order 4, whose rows all sum to 2. The
matrix is symmetric and orthogonal, hence its own inverse: rotating twice gives x back.

Source: Huang et al., "ConvRot: Rotation-Based Plug-and-Play 4-bit Quantization for Diffusion
Transformers" (2025); the same matrix as ComfyUI's ``convrot`` checkpoints.
"""

from functools import lru_cache

import torch

from ..files.memory import empty
from ..formats.convrot import GROUPS, largest_group
from . import _checks
from ._library import define

CHUNK = 1 << 19
"""Elements handled at once on the CPU. 2 MiB of float32 measured best on two Zen 3 cores (1 << 17
takes 2.4 times as long for want of work per thread, 1 << 21 takes 1.4 times as long for want of cache)."""

# H_g = H_a (x) H_b: two small products cost 2 (a + b) operations per element instead of 2 g.
# For groups up to 64 one product is as fast, because its inner length fills a register tile.
_FACTORS = {4: (1, 4), 16: (1, 16), 64: (1, 64), 256: (16, 16), 1024: (16, 64)}


@lru_cache(maxsize=64)
def hadamard(group: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    """Return the orthonormal regular Hadamard matrix [group, group].

    group: 1 or one of GROUPS; ValueError otherwise. The result is cached: do not write to it.
    """
    if group != 1 and group not in GROUPS:
        raise ValueError(f"rotation group must be one of {GROUPS}, not {group}")
    # The cache outlives the caller's modes: an inference tensor or one on a default device of
    # "meta" would be handed to later callers that cannot use it.
    with torch.inference_mode(False):
        rows = [[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]
        h4 = torch.tensor(rows, dtype=torch.float64, device="cpu")
        h = torch.ones(1, 1, dtype=torch.float64, device="cpu")
        while h.shape[0] < group:
            h = torch.kron(h, h4)
        return (h / group**0.5).to(device=device, dtype=dtype)


def check_rotation(in_features: int, rotation: int) -> None:
    """Refuse a rotation that is not 0 (none) or a group of GROUPS dividing `in_features`."""
    if rotation == 0:
        return
    if rotation not in GROUPS:
        raise ValueError(f"rotation must be 0 or one of {GROUPS}, not {rotation}")
    if in_features % rotation:
        fits = largest_group(in_features, GROUPS[::-1])
        hint = f"the largest group that does is {fits}" if fits else "no group does"
        raise ValueError(f"rotation group {rotation} does not divide {in_features} columns ({hint})")


def rotate_rows(x: torch.Tensor, group: int, out: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
    """Rotate contiguous float32 rows into `out`, through `scratch` of the same size; returns `out`.

    All three may be reused by the next call: on the CPU a fresh buffer costs more in page
    faults than the arithmetic does. x may be `out`, never `scratch`.
    """
    a, b = _FACTORS[group]
    device = str(x.device)
    if a == 1:
        inner = out if out.data_ptr() != x.data_ptr() else scratch
        torch.mm(x.view(-1, b), hadamard(b, torch.float32, device), out=inner.view(-1, b))
        return out if inner is out else out.copy_(inner)
    torch.mm(x.view(-1, b), hadamard(b, torch.float32, device), out=scratch.view(-1, b))
    torch.matmul(hadamard(a, torch.float32, device), scratch.view(-1, a, b), out=out.view(-1, a, b))
    return out


def _rotate(x: torch.Tensor, group: int) -> torch.Tensor:
    _checks.floating("x", x)
    _checks.has_rows("x", x)
    check_rotation(x.shape[-1], group)
    if group == 0:
        return x.clone(memory_format=torch.contiguous_format)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, result = x.reshape(-1, x.shape[-1]), out.view(-1, x.shape[-1])
    for part, work in float_chunks(rows, group):
        result[part] = work
    return out


def float_chunks(rows: torch.Tensor, rotation: int = 0, multiple: int = 1):
    """Yield ``(slice, float32 rows)`` over [M, K], rotated when asked, a cache-sized part at a time.

    The yielded tensor is a buffer that the caller may overwrite and that the next step reuses.
    multiple: every part but the last has a multiple of this many rows.
    """
    m, k = rows.shape
    step = max(1, CHUNK // (k * multiple)) * multiple if rows.device.type == "cpu" else m
    step = min(step, max(m, 1))
    work = empty((step, k), torch.float32, rows.device)
    spare = empty((step, k), torch.float32, rows.device) if rotation else work
    for start in range(0, m, step):
        n = min(step, m - start)
        y, s = work[:n], spare[:n]
        y.copy_(rows[start : start + n])
        if rotation:
            rotate_rows(y, rotation, y, s)
        yield slice(start, start + n), y


def _rotate_fake(x: torch.Tensor, group: int) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


_op = define(
    "rotate(Tensor x, int group) -> Tensor", eager=_rotate, fake=_rotate_fake, device="rotation.rotate"
)


def rotate(x: torch.Tensor, group: int) -> torch.Tensor:
    """Rotate each group of `group` columns of x [.., K] by the regular Hadamard matrix.

    x: float32, float16 or bfloat16, any strides. Accumulated in float32, rounded once to
    x's dtype; the result is contiguous. Raises ValueError when `group` is not one of GROUPS
    or does not divide K; 0 returns a copy.
    """
    return _op(x, group)
