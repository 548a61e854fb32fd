"""Keep freed memory for the next tensor instead of handing it back to the kernel."""

import ctypes
import sys

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Let the allocator of this process reuse what it freed; for processes that run a model.

    By default glibc maps each large tensor anew and unmaps it when it is freed, so that a
    training step on the CPU spends a third of its time in page faults. Does nothing where
    the C library has no ``mallopt``.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
