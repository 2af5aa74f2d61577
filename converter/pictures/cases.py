"""The pictures to make: every prompt with every seed in every size, and the edge cases of a real workflow."""

from collections.abc import Sequence
from itertools import cycle, islice

from .report import Case

LONG_WORDS = 300
"""Words of the long prompt: more than any text encoder of these pipelines takes tokens of one part."""


def plan_cases(
    prompts: Sequence[str], seeds: Sequence[int], sizes: Sequence[tuple[int, int] | None]
) -> list[Case]:
    """List a case for each prompt, seed and size; None is the pipeline's own size."""
    cases = []
    for i, prompt in enumerate(prompts, 1):
        for seed in seeds:
            for size in sizes:
                shown = f", {size[0]} x {size[1]}" if size else ""
                cases.append(Case(f"prompt {i}, seed {seed}{shown}", (prompt,), seed, size))
    return cases


def edge_cases(prompts: Sequence[str], seed: int, size: tuple[int, int]) -> list[Case]:
    """List what breaks first: a long prompt, a picture half as large again, and two pictures in one batch.

    size: [width, height] of an ordinary picture; the large one's sides are multiples of 64, or of 16 for
    toys.
    """
    words = islice(cycle(" ".join(prompts).split()), LONG_WORDS)
    unit = 64 if min(size) >= 256 else 16
    large = (_above(size[0], unit), _above(size[1], unit))
    return [
        Case(f"a prompt of {LONG_WORDS} words", (" ".join(words),), seed, size),
        Case(f"large, {large[0]} x {large[1]}", (prompts[0],), seed, large),
        Case("two in one batch", (prompts[0], prompts[-1]), seed, size),
    ]


def _above(side: int, unit: int) -> int:
    return -(-side * 3 // 2 // unit) * unit
