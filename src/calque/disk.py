"""Files that appear complete or not at all, and the fingerprints that tell two of them apart."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from calque.errors import ConfigError, DataError

_CHUNK = 1 << 20
_LARGE = 16 << 20
_SETTLED = 1_000_000_000  # nanoseconds
_LANE_BYTES = 1 << 18
_LANE_FACTOR = 0x9E3779B97F4A7C15  # odd: no word is ever multiplied out of the sum


def cache_root() -> Path:
    """The cache folder: $CALQUE_CACHE, else ~/.cache/calque."""
    asked = os.environ.get("CALQUE_CACHE")
    return Path(asked).expanduser() if asked else Path.home() / ".cache" / "calque"


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(path: Path) -> str:
    """SHA-256 over the relative names and bytes of a file or of every file below a folder.

    A manifest describes its folder and is therefore left out of it.
    """
    if path.is_file():
        return sha256(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p.name != "manifest.json"):
        digest.update(f"{file.relative_to(path)}\0{sha256(file)}\n".encode())
    return digest.hexdigest()


def checksum(path: Path) -> str:
    """As `fingerprint`, but large files are summed up in a fifteenth of the time, and once while they stay.

    Every byte counts, and chance does not make two files agree; someone who wants two files to agree can,
    so this tells versions apart and proves no origin.
    """
    if path.is_file():
        return _remembered(path) if path.stat().st_size > _LARGE else sha256(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p.name != "manifest.json"):
        digest.update(f"{file.relative_to(path)}\0{checksum(file)}\n".encode())
    return digest.hexdigest()


def _remembered(path: Path) -> str:
    """The sum of a large file, noted in the cache: merging the same models again need not read them first.

    A file is the same while its inode, size and both times stay; the time of its last change (ctime) can not
    be set back by a program.
    """
    state = path.stat()
    stamp = [state.st_size, state.st_mtime_ns, state.st_ctime_ns]
    note = cache_root() / "checksums" / f"{state.st_dev}-{state.st_ino}.json"
    with suppress(OSError, DataError):
        known = read_json(note)
        if isinstance(known, dict) and known.get("stamp") == stamp:
            return str(known["sum"])
    settled = time.time_ns() - state.st_ctime_ns > _SETTLED  # else one more change might bear the same time
    found = _lanes(path)
    if settled:
        with suppress(OSError, DataError):  # a cache that can not be written is no cache
            write_json(note, {"stamp": stamp, "sum": found})
    return found


def _lanes(path: Path) -> str:
    """SHA-256 over many polynomial sums modulo 2**64, each over every n-th word of the file."""
    import numpy as np

    sums = np.zeros(_LANE_BYTES // 8, np.uint64)
    block = np.empty(_LANE_BYTES // 8, np.uint64)
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(block.data):
            block.view(np.uint8)[count:] = 0
            np.multiply(sums, np.uint64(_LANE_FACTOR), out=sums)
            np.add(sums, block, out=sums)
    return hashlib.sha256(f"{path.stat().st_size}\0".encode() + sums.tobytes()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a whole text file through a neighbour and a rename, so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with clear_disk_errors(path):
        try:
            with part.open("w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, atomically."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a damaged file is a DataError that names the line."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not valid UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise DataError(f"{path}: nested deeper than any JSON of ours or of a model is") from None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden neighbour of `path` to fill; it becomes `path` by one rename when the block ends well.

    What a killed process left behind of an earlier attempt is removed first.

    Raises:
        ConfigError: `path` exists already. Nothing that exists is ever overwritten.
    """
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with clear_disk_errors(path):
        _remove_abandoned(path)
        try:
            part.mkdir()
            yield part
            os.rename(part, path)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _remove_abandoned(path: Path) -> None:
    """Remove hidden neighbours of `path` whose process is no longer there."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        owner = left.suffixes[-2].removeprefix(".") if len(left.suffixes) > 1 else ""
        if left.is_dir() and owner.isdigit() and not _is_running(int(owner)):
            shutil.rmtree(left, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def refuse_existing(path: Path) -> None:
    """Raise ConfigError when `path` is a file or a folder with something in it."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ConfigError(f"output {path} exists already; give another -o, or remove it first")


@contextmanager
def clear_disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into an error that says where and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(_existing_parent(path)).free
            raise DataError(
                f"disk full while writing {path} ({free / 1e6:.0f} MB free); "
                "nothing was put in place; make room and run the same command again"
            ) from None
        if error.errno == errno.EFBIG:
            raise DataError(
                f"can not write {path}: a file would become larger than this disk, or this shell "
                "(ulimit -f), allows"
            ) from None
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise DataError(f"can not write {path}: {error.strerror}") from None
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` (created if missing) against other processes; waits for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _existing_parent(path: Path) -> Path:
    return next(p for p in (path, *path.absolute().parents) if p.exists())
