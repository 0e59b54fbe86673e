"""What a result was made with and on: versions, processor, memory."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def versions() -> dict[str, str]:
    """Versions of what can change a result."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("calque", "torch", "transformers", "tokenizers", "accelerate", "peft", "numpy", "scipy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """The machine a result was made on: what a reader needs to judge the seconds."""
    import psutil

    name = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        name = next(
            (line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line),
            name,
        )
    return {
        "processor": name,
        "cores": len(psutil.Process().cpu_affinity() or []) if hasattr(psutil.Process, "cpu_affinity") else 0,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(terse=True),
    }


def reset_peak_memory() -> None:
    """Begin a new measurement of peak memory, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory() -> float:
    """Peak resident memory of this process in bytes, since the last reset where the system has one."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) * 1024
    import resource

    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def keep_freed_memory() -> None:
    """Let the C library keep up to 128 MB of freed blocks, where it is glibc.

    It would give each of them back to the system and clear fresh pages for the next one, which costs
    streaming through a model as much time as its arithmetic. All threads share two heaps: each heap keeps
    freed blocks of its own, and threads that come and go would make one after the other.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim, top_pad, mmap_from, heaps = -1, -2, -3, -8
        mallopt(heaps, 2)
        mallopt(mmap_from, 32 << 20)
        mallopt(trim, 128 << 20)
        mallopt(top_pad, 16 << 20)


@contextmanager
def spare_core() -> Iterator[None]:
    """Leave one core to the threads that read and write while torch computes with the others.

    With as many threads as cores every operation would wait for one that is not running.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before - 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def collect_rarely() -> None:
    """Let Python look for cycles of garbage less often.

    Importing torch and transformers makes hundreds of thousands of objects that stay, and looking at them
    again and again is a good part of the time that takes.
    """
    import gc

    gc.set_threshold(50_000, 20, 20)


def threads() -> int:
    """Threads that numeric work uses here: the environment's word, else the cores of this process."""
    import os

    return int(os.environ.get("OMP_NUM_THREADS") or 0) or int(machine()["cores"])


def processes() -> int:
    """How many processes a launcher (`accelerate launch`, torchrun) started for this command, else 1."""
    import os

    return int(os.environ.get("WORLD_SIZE") or 1)


def follows() -> bool:
    """Whether this is one of several processes, and not the main one."""
    import os

    return processes() > 1 and int(os.environ.get("RANK") or 0) > 0


def has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (AVX512-BF16, AMX, or Arm BF16)."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def examine() -> dict[str, Any]:
    """What `calque doctor` prints: everything that decides whether and how fast a run works here."""
    import shutil
    import sys

    import psutil

    from calque.disk import cache_root

    here = machine()
    cache = cache_root()
    parent = next(p for p in (cache, *cache.parents) if p.exists())
    memory = psutil.virtual_memory()
    return {
        **versions(),
        "processor": here["processor"],
        "system": here["system"],
        "cores": here["cores"],
        "threads": threads(),
        "bf16": "in hardware" if has_bf16() else "no: float32 is the fast type here",
        "memory": f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB free",
        "cache": f"{cache} ({_size(cache) / 1e6:.0f} MB)",
        "disk": f"{shutil.disk_usage(parent).free / 1e9:.1f} GB free",
        "interpreter": sys.executable,
    }


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
