"""Keeping this process's memory near what it uses."""

import ctypes
import sys

_M_MMAP_THRESHOLD = -3
_THRESHOLD = 1 << 20


def return_freed_buffers() -> None:
    """Make glibc give buffers of a megabyte and more back to the system when they are freed.

    By default it raises that threshold to 32 MiB as soon as such a buffer is freed and then keeps freed
    layers in the heaps of three threads: 521 MiB instead of 334 at the peak of a 1 GiB model. Elsewhere
    this does nothing.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)
