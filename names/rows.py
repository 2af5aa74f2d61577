"""One line of a table of names, and the rows of a weight that it is about.

ComfyUI's checkpoints fuse layers that diffusers keeps apart, and some have the halves of a layer the other
way round. One line serves both directions: loading a checkpoint into diffusers' model (and saving it back),
and adding a LoRA that was trained in diffusers to a checkpoint.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

Segments = tuple[tuple[int, int, int], ...]
"""Rows of a weight that a change is added to: (first row, first row of the change, count)."""

SPLITS: dict[str, Callable[[int, int], tuple[int, ...]]] = {
    # As many rows as columns for q; k and v share the rest (fewer heads in Lumina).
    "qkv": lambda n, k: (k, (n - k) // 2, (n - k) // 2),
    # Heads of another width altogether than the model.
    "thirds": lambda n, k: (n // 3, n // 3, n // 3),
    "kv": lambda n, k: (n // 2, n // 2),
    # Single blocks of Flux: q, k, v of K rows each, then the MLP.
    "qkv+mlp": lambda n, k: (k, k, k, n - 3 * k),
    # Those of Flux.2, whose MLP is gated.
    "qkv+gate+up": lambda n, k: (k, k, k, (n - 3 * k) // 2, (n - 3 * k) // 2),
}
"""How the rows of a fused weight are divided: name -> from its (N, K) to the rows of each layer in it."""


class Row(NamedTuple):
    """A layer of a checkpoint and what diffusers calls it.

    ours: its name in ComfyUI's checkpoints; or a whole tensor's name. ``{i}`` is the number of a block.
    theirs: diffusers' name; several in order of the rows where the checkpoint fuses them; none for what
    diffusers does not have. how: a name in `SPLITS` where they are several, "swap" where the two halves of
    the rows are exchanged, "swap pair" where that is so only of a layer of two rows per column, else "".
    """

    ours: str
    theirs: str | tuple[str, ...]
    how: str = ""

    @property
    def targets(self) -> tuple[str, ...]:
        """Return diffusers' names in order of the rows."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


def swaps(how: str, rows: int, columns: int) -> bool:
    """Tell whether the halves of a layer [rows, columns] are exchanged, by its `Row.how`."""
    return how == "swap" or (how == "swap pair" and rows == 2 * columns)


class Part(NamedTuple):
    """Which of a checkpoint layer's rows a diffusers layer is: the `Row.how` of its line, its place there."""

    how: str = ""
    place: int = 0

    def segments(self, n: int, k: int) -> Segments:
        """Return which rows of the checkpoint's weight [n, k] the diffusers layer is; none: all of them."""
        if swaps(self.how, n, k):
            return (n // 2, 0, n // 2), (0, n // 2, n // 2)
        if self.how not in SPLITS:
            return ()
        sizes = SPLITS[self.how](n, k)
        return ((sum(sizes[: self.place]), 0, sizes[self.place]),)


ALL_ROWS = Part()
"""A layer that is the whole of a checkpoint's layer."""


def same(*names: str) -> tuple[Row, ...]:
    """Return rows of layers that are called the same on both sides: a table that lists them is complete."""
    return tuple(Row(name, name) for name in names)


def under(ours: str, theirs: str, rows: Iterable[tuple]) -> tuple[Row, ...]:
    """Return rows whose names, written below two modules, are below `ours` and `theirs`."""
    return tuple(
        Row(f"{ours}.{row.ours}", tuple(f"{theirs}.{t}" for t in row.targets), row.how)
        for row in (Row(*r) for r in rows)
    )
