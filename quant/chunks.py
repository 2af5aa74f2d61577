"""Rows in chunks that shrink when the device has no more memory."""

import logging
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)


def allocate(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """Return float32 working memory [rows, columns]: the allocation that decides whether a chunk fits."""
    return torch.empty(rows, columns, dtype=torch.float32, device=device)


def in_chunks(
    rows: int, chunk: int | None, work: Callable[[int, int], None], multiple: int = 1, name: str = ""
) -> int:
    """Call ``work(start, stop)`` over `rows` in chunks; returns the chunk that was in use at the end.

    chunk: rows at a time, rounded up to a `multiple` (None: all rows). An out-of-memory error halves it,
    down to one multiple, and the rows that failed are done again; below that it is raised. `work` must
    bear being repeated.
    """
    size = rows if chunk is None else min(rows, chunk)
    size = max(multiple, -(-size // multiple) * multiple)
    start = 0
    while start < rows:
        try:
            work(start, min(start + size, rows))
        except torch.OutOfMemoryError:
            if size <= multiple:
                raise
            size = max(multiple, -(-size // (2 * multiple)) * multiple)
            logger.warning("%s: out of memory, going on with %d rows at a time", name or "layer", size)
        else:
            start += size
            continue
        # Outside the handler: the error's traceback holds the failed chunk's tensors.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return size
