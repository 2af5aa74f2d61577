"""The best approximation of a matrix by two narrow ones."""

import torch

_OVERSAMPLED = 8
_PASSES = 2


def low_rank(matrix: torch.Tensor, rank: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (up [N, r], down [r, K]), float32, whose product is near the best of rank r for `matrix` [N, K].

    r is `rank`, or the smaller side of the matrix. Both get the square roots of the singular values, so that
    both keep their precision in 16 bits. The same seed gives the same bits. Randomised subspace iteration:
    Halko, Martinsson and Tropp 2011, https://arxiv.org/abs/0909.4061, algorithm 4.4; quantization errors have
    flat spectra, so the passes matter.
    """
    a = matrix.float()
    rank = min(rank, *a.shape)
    width = min(rank + _OVERSAMPLED, *a.shape)
    start = torch.randn(a.shape[1], width, generator=torch.Generator().manual_seed(seed))
    basis = torch.linalg.qr(a @ start)[0]
    for _ in range(_PASSES):
        basis = torch.linalg.qr(a @ torch.linalg.qr(a.T @ basis)[0])[0]
    u, s, vh = torch.linalg.svd(basis.T @ a, full_matrices=False)
    root = s[:rank].sqrt()
    return (basis @ u[:, :rank]) * root, root[:, None] * vh[:rank]
