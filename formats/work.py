"""How much an algorithm computes for a layer, counted from its shape: estimates of time are made from it."""

from dataclasses import dataclass

PRODUCTS = 4e10
"""Multiply-adds per second in products of two matrices, float32 on two cores (bench/estimate.py)."""

TOUCHES = 4e9
"""Values per second that everything else reads or writes there."""

SPAN = 128
"""Columns that are rounded one after the other between two products of matrices."""

DESCENT_PASSES = 4
"""Coordinate-descent passes of learned rounding; measured, the fifth gains less than 0.01 dB."""

DAMPING = 0.1
"""Share of the Hessian's mean diagonal that is added to its diagonal. Ten times less fits the calibration's
own kind of text no better and other kinds worse, by up to 0.4 dB W8A16 (docs/quality.md)."""

_COLUMN = SPAN // 2 + 20
"""Values touched per weight where columns are rounded one by one: half the block's errors, and rounding."""

_WHOLE = 1024
"""Columns of the Hessian that are computed without regard to its symmetry."""

_STEP = 60
"""Values touched per weight by a step of an optimizer: relaxation, regulariser, gradient and update."""


@dataclass(frozen=True)
class Work:
    """products: multiply-adds in products of two matrices. touches: values read or written elsewhere."""

    products: float
    touches: float

    @property
    def seconds(self) -> float:
        """Return the time on two cores."""
        return self.products / PRODUCTS + self.touches / TOUCHES


def feedback(shape: tuple[int, int], tokens: int, passes: int = 0) -> Work:
    """Count LDLQ of a weight [N, K] with a Hessian of `tokens`, then `passes` of coordinate descent.

    The Hessian takes T K^2, less what its symmetry saves in wide layers, Cholesky K^3 / 6, the feedback
    N K^2 / 2: a block of columns meets the errors of those before it. A pass takes the gradient of every
    column, N K^2.
    """
    n, k = shape
    hessian = tokens * k * (k + min(k, _WHOLE)) / 2
    products = hessian + k**3 / 6 + n * k * k / 2 + passes * n * k * k
    return Work(products, n * k * (_COLUMN * (1 + passes) + 10))


def learned(shape: tuple[int, int], tokens: int, steps: int) -> Work:
    """Count learned rounding of a weight [N, K]: LDLQ, then N K^2 for each step of the optimizer.

    The same again for each candidate's loss, the first gradient and each pass of the descent that ends it.
    """
    n, k = shape
    start = feedback(shape, 2 * tokens)  # it makes its Hessian a second time
    products = start.products + (5 + steps + DESCENT_PASSES) * n * k * k
    touches = start.touches + n * k * (_STEP * steps + _COLUMN * DESCENT_PASSES + 40)
    return Work(products, touches)
