"""Layers that INT8 does not help (``--heur``), by the arithmetic of a linear layer at run time.

An INT8 linear quantizes its input first: it reads 2 M K bytes and writes M K. In return its product takes
half the time of a 16-bit one, which saves M N K / P16 seconds, P16 being the card's 16-bit operations
per second. With P16 = 165e12 and 1e12 bytes per second (an RTX 4090) that pays from N = 3 x 165 = 495 output
features on; M and K cancel.
"""

MIN_ROWS = 512
"""Output features below which quantizing the input costs what the faster product saves."""

MIN_ELEMENTS = 1 << 20
"""Weights below 1024 x 1024 save under 1 MiB each, and with 256 tokens take 3 us on that card, less than
launching one more kernel."""

ROW_STEP = 8
COLUMN_STEP = 16
"""int8 tensor cores are fed 16 bytes of K at a time and write N in eights; other shapes take slow kernels."""


def why_skip(rows: int, columns: int) -> str:
    """Say why a weight [rows, columns] had better stay as it is; "" where INT8 pays."""
    if columns % COLUMN_STEP:
        return f"{columns} columns are no multiple of {COLUMN_STEP}"
    if rows % ROW_STEP:
        return f"{rows} rows are no multiple of {ROW_STEP}"
    if rows < MIN_ROWS:
        return f"{rows} rows, fewer than {MIN_ROWS}"
    if rows * columns < MIN_ELEMENTS:
        return f"{rows}x{columns}, fewer than {MIN_ELEMENTS:,} elements"
    return ""
