"""The algorithms that choose a layer's values: one record each, without torch, so that plans can name them.

A new algorithm is a file in quant/algorithms with a function ``(weight, stats, options, name) ->
(QuantizedTensor, note)`` and a row below.
"""

from dataclasses import dataclass

from . import work

_TOKENS = 48 << 20
_TILE = 1024
_FLOAT = 4


@dataclass(frozen=True)
class Algorithm:
    """What is known of an algorithm before it runs.

    run: "module:function" in quant/algorithms. title: what it is, for help pages. aliases: other names that
    people type. needs_hessian: without measured inputs it is rounding to nearest. rotates: whether it is for
    rotated weights (True), for weights that are not (False), or for both (None); where nothing is said of
    rotation, that decides. optimizes: it takes steps of an optimizer. squares: [K, K] float32 matrices held
    beside the factor's. tiles: tiles of rows at work at once; 0 where it factors no Hessian and its time goes
    by the format (`Format.speed`).
    """

    name: str
    run: str
    title: str
    aliases: tuple[str, ...] = ()
    needs_hessian: bool = False
    rotates: bool | None = None
    optimizes: bool = False
    squares: int = 0
    tiles: int = 0

    @property
    def factors(self) -> bool:
        """Return whether it factors a Hessian, which is what takes memory and a device."""
        return self.tiles > 0

    def memory(
        self, shape: tuple[int, int], rows: int | None = None, in_place: bool = False, passes: int = 0
    ) -> int:
        """Estimate the bytes that a weight [N, K] takes at its peak, `rows` (None: all) at a time.

        Rounding: the rows in 16 bit, two float32 work buffers and the codes. Others: the Hessian, one
        [K, K] float32 in place, else four, and one more for `passes` of coordinate descent; 48 MiB of tokens;
        the rows as float32 and codes; tiles at work.
        """
        n, k = shape
        n = n if rows is None else min(n, rows)
        if not self.factors:
            return n * k * (2 + 8 + 1)
        squares = (1 if in_place else 4) + max(self.squares, int(passes > 0))
        tiles = min(n, _TILE) * k * _FLOAT * self.tiles
        return _FLOAT * k * k * squares + _TOKENS + n * k * (_FLOAT + 1) + tiles

    def work(self, shape: tuple[int, int], tokens: int, steps: int = 0, passes: int = 0) -> work.Work | None:
        """Count what a weight [N, K] takes; None for rounding, whose time goes by the format.

        tokens: of its Hessian. steps: of an optimizer. passes: of coordinate descent after LDLQ.
        """
        if not self.factors:
            return None
        return work.learned(shape, tokens, steps) if self.optimizes else work.feedback(shape, tokens, passes)


def _learned(name: str, optimizer: str, *aliases: str) -> Algorithm:
    return Algorithm(
        name,
        "learned:learned",
        f"learned rounding by {optimizer}",
        aliases,
        optimizes=True,
        squares=1,
        tiles=12,
    )


ALGORITHMS: dict[str, Algorithm] = {
    a.name: a
    for a in (
        Algorithm("rtn", "rtn:rtn", "to nearest; the default", aliases=("simple",)),
        Algorithm(
            "ldlq",
            "ldlq:ldlq",
            "LDLQ without rotation",
            aliases=("gptq",),
            needs_hessian=True,
            rotates=False,
            tiles=3,
        ),
        Algorithm(
            "quip",
            "ldlq:ldlq",
            "LDLQ of rotated weights; the default with calibration data",
            needs_hessian=True,
            rotates=True,
            tiles=3,
        ),
        _learned("original", "SGD"),
        _learned("adamw", "AdamW", "prodigy"),
        _learned("radam", "RAdam"),
    )
}
"""Every algorithm by name. "quip" is LDLQ of a rotated weight; learned ones are named by their optimizer."""

ROUNDING = "rtn"
"""What a layer gets without calibration."""


def help_text() -> str:
    """Return every algorithm with its aliases and what it is, for ``--optimizer``."""
    named = ((" or ".join((a.name, *a.aliases)), a.title) for a in ALGORITHMS.values())
    return ", ".join(f"{names} ({title})" for names, title in named)


def canonical(name: str) -> str:
    """Return the name of the algorithm that `name` or its alias stands for; KeyError where there is none."""
    if name in ALGORITHMS:
        return name
    found = [a.name for a in ALGORITHMS.values() if name in a.aliases]
    if not found:
        raise KeyError(name)
    return found[0]


def calibrated(rotated: bool) -> str:
    """Return the best algorithm for a layer whose inputs are known, rotated or not."""
    return next(a.name for a in ALGORITHMS.values() if a.needs_hessian and a.rotates is rotated)
