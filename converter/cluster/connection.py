"""Connecting to a Ray cluster, or beginning one here, without a word of Ray's on the terminal."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

from ...formats.errors import ConversionError
from .address import AUTO, LOCAL, require_answer

_ALONE = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
"""A cluster of ours tells nobody that it is there, and its processes have the priority that this one has."""


def connect(ray: Any, address: str) -> None:
    """Connect this process to a cluster; ConversionError where that cannot be done.

    What Ray says of its machines is silenced in this process from then on: it would stand in the middle of
    standard output, which may be a table that a program reads.
    """
    if address not in (LOCAL, AUTO):
        require_answer(address)
    options = {"include_dashboard": False} if address == LOCAL else {}
    ray._private.worker.print_to_stdstream = _silent  # log_to_driver=False leaves these lines in
    try:
        with _environment(_ALONE):
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **options)
    except ConnectionError as e:
        raise ConversionError(
            f"--ray {address}: no Ray cluster runs on this machine: ray start --head begins one, and --ray "
            "local has one of its own"
        ) from e
    except (Exception, SystemExit) as e:
        with contextlib.suppress(Exception):
            ray.shutdown()
        reason = " ".join(str(e).split())[:300]
        raise ConversionError(f"--ray {address}: cannot connect: {type(e).__name__}: {reason}") from e


def _silent(*args: Any, **options: Any) -> None:
    """Print nothing."""


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set what is not set in the environment, for some calls."""
    added = {k: v for k, v in values.items() if k not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
