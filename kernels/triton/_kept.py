"""The plans that later calls run again, by all that they depend on."""

from collections.abc import Callable
from typing import Any

LIMIT = 4096
"""Plans kept: far more than the layers of a model times its batch shapes. Beyond, all are dropped."""

PLANS: dict[tuple, Callable[[tuple], Any]] = {}
"""Kind of call (`_planned`) -> what to call with the arguments of another such call."""


def keep(key: tuple, again: Callable[[tuple], Any]) -> None:
    """Keep what to call for calls of kind `key`."""
    if len(PLANS) >= LIMIT:
        forget()
    PLANS[key] = again


def forget() -> None:
    """Drop all plans: the choices they were made with are void."""
    PLANS.clear()
