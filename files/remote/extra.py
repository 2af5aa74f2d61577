"""Packages that reading elsewhere needs: asked for by name."""

from __future__ import annotations

from ...formats.errors import CheckpointError
from ...version import DISTRIBUTION
from .address import RemoteFile


def missing(place: RemoteFile, package: str) -> CheckpointError:
    """Return the error for a package that is not installed."""
    meant = ""
    if place.given:
        meant = "no such file or folder here; to look for it on the Hugging Face Hub, "
    return CheckpointError(
        f"{place.given or place}: {meant}{package} is needed: pip install '{DISTRIBUTION}[hub]'"
    )
