"""Memory of a training: what is freed stays for the next step, and what to do where it does not suffice."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from calque.errors import ConfigError
from calque.train.stage import Stage

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


@contextmanager
def enough_memory(stage: Stage) -> Iterator[None]:
    """Say what to lower when memory runs out in the block.

    Raises:
        ConfigError: in place of whatever the system raised.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # The allocator of the processor has no exception of its own.
        words = ("can't allocate memory", "not enough memory", "out of memory")
        if isinstance(error, RuntimeError) and not any(word in str(error).lower() for word in words):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise ConfigError(
            f"training {stage.part}: out of memory ({first}); compute a step of {stage.batch_tokens} tokens "
            f"in more parts (accumulate = {2 * stage.accumulate}), lower batch_tokens or length, or train "
            "less of the model (part 'lora' or 'embeddings')"
        ) from None
