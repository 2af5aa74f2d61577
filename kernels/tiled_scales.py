"""Block scales in the order that cuBLAS reads: tiles of 128 rows x 4 columns, 512 bytes each.

Source: the cuBLAS documentation, "1D block scaling factors layout". Byte 16 (r % 32) + 4 (r // 32) + c of a
tile is the scale of its row r and column c.
"""

import torch

_ROWS, _COLUMNS = 128, 4


def tiled_shape(rows: int, columns: int) -> tuple[int, int]:
    """Return the shape of the tiles of scales [rows, columns]."""
    return -(-rows // _ROWS) * _ROWS, -(-columns // _COLUMNS) * _COLUMNS


def tiled(scales: torch.Tensor) -> torch.Tensor:
    """Return scales [N, C], of one byte each, in tiles: [N rounded up to 128, C rounded up to 4], zeros
    beyond."""
    n, c = scales.shape
    raw = torch.nn.functional.pad(scales.view(torch.uint8), (0, -c % _COLUMNS, 0, -n % _ROWS))
    rows, columns = raw.shape
    tiles = raw.view(rows // _ROWS, 4, 32, columns // _COLUMNS, _COLUMNS).permute(0, 3, 2, 1, 4)
    return tiles.reshape(rows, columns).view(scales.dtype)


def untiled(stored: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Return the scales [rows, columns] of `tiled`."""
    n, c = stored.shape
    tiles = stored.contiguous().view(torch.uint8).view(n // _ROWS, c // _COLUMNS, 32, 4, _COLUMNS)
    return tiles.permute(0, 3, 2, 1, 4).reshape(n, c)[:rows, :columns].contiguous().view(stored.dtype)
