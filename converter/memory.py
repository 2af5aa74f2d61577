"""Keeping this process's memory near what it uses."""

import ctypes
import mmap
import sys

import torch

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


def empty_float32(shape: tuple[int, ...]) -> torch.Tensor:
    """A float32 tensor for a layer, in huge pages where the system gives them on request.

    Filling fresh memory costs more than the arithmetic of a LoRA merge: 3.0 ms a million elements in pages
    of 4 KiB, 0.9 ms in huge ones (one EPYC core).
    """
    tensor = torch.empty(shape, dtype=torch.float32)
    advice = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux
    if advice is not None and tensor.nbytes >= _THRESHOLD:
        madvise = ctypes.CDLL(None).madvise
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (tensor.data_ptr() + tensor.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), ctypes.c_int(advice))  # a hint: may fail
    return tensor
