"""How the libraries under the reference backend, BLAS and the C library, are set up for it."""

import ctypes
import functools
import sys


@functools.cache
def use_one_blas_thread() -> None:
    """Let products run on the thread that calls them: the worker pool does the sharing out, reproducibly."""
    import threadpoolctl

    threadpoolctl.threadpool_limits(1, "blas")


@functools.cache
def keep_freed_memory() -> None:
    """Ask the C library not to hand freed memory back to the system.

    A training step frees and allocates the same large arrays again and again; getting them from the system each time
    would fault in every page anew, which costs more than the arithmetic on them.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8  # malloc.h
    for parameter, value in ((trim_threshold, 1 << 30), (top_pad, 1 << 26), (mmap_max, 0), (arena_max, 1)):
        libc.mallopt(parameter, value)
