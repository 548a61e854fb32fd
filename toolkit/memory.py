"""Keep freed memory for the next tensor instead of handing it back to the kernel."""

import ctypes
import sys

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Below the second, memory comes from the heap and is used again; what is free at its end
# beyond the first goes back to the kernel. Larger tensors are mapped one by one, so that
# sizes that vary from batch to batch do not leave a growing heap of gaps.
KEPT, REUSED = 512 << 20, 32 << 20


def keep_freed_memory() -> None:
    """Let the allocator of this process reuse what it freed; for processes that run a model.

    By default glibc maps each large tensor anew and unmaps it when it is freed, so that a
    training step on the CPU can spend a quarter of its time in page faults. Does nothing where
    the C library has no ``mallopt``.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, REUSED)
        mallopt(_TRIM_THRESHOLD, KEPT)
