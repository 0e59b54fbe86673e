"""Keep freed memory for the next step, instead of returning it to the system and faulting it in again."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# Numbers of glibc's malloc.h; other C libraries have no mallopt and are left alone.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_HEAP_BLOCK = 32 << 20
_DEFAULT = 128 << 10


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """For the time of the block, freed memory stays with the process.

    A training step frees gigabytes and asks for them again at once; with glibc's defaults up to a tenth of
    its time goes into page faults.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST_HEAP_BLOCK)
    try:
        yield
    finally:
        libc.mallopt(_TRIM_THRESHOLD, _DEFAULT)
        libc.mallopt(_MMAP_THRESHOLD, _DEFAULT)
        libc.malloc_trim(0)
