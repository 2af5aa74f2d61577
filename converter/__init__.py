"""Checkpoints in, checkpoints out: plan, read, quantize, write, check; and the command line."""

from ..namesake import warn as _warn_of_namesake

_warn_of_namesake()  # the package did, unless the other tool's __init__ has replaced ours
