"""What a killed rewrite has finished: the same command goes on after its last tensor that is on disk."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calque.disk import clear_disk_errors, refuse_existing

_SECONDS = 1.0  # between two syncs; at most so much finished work is done again
_NAME = "journal.jsonl"


class Journal:
    """The tensors of a rewrite whose bytes are on disk.

    Attributes:
        folder: where the checkpoint is being written.
        done: tensor name -> what is known about it, of an earlier attempt that was killed.
    """

    def __init__(self, folder: Path, file: Path | None, done: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder, self.done = folder, done
        self._file = file
        self._pending: list[tuple[int, str]] = []
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def finished(self, target: int, name: str, known: Mapping[str, Any]) -> None:
        """Note a tensor as written to the file descriptor `target`; the line follows when it is on disk."""
        if self._error is not None:
            raise self._error
        if self._file is None:
            return
        line = json.dumps({"name": name, **known}, ensure_ascii=False)
        with self._lock:
            self._pending.append((target, line))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def flush(self) -> None:
        """Bring everything noted so far to the disk."""
        self.stop()
        self._sync()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Use the file descriptors no more; they may be closed afterwards."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
            self._stop.clear()

    def _work(self) -> None:
        try:
            while not self._stop.wait(_SECONDS):
                self._sync()
        except BaseException as error:  # raised again where the rewrite notes its next tensor
            self._error = error

    def _sync(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, []
        if not pending or self._file is None:
            return
        for target in {target for target, _ in pending}:
            os.fdatasync(target)
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write("".join(f"{line}\n" for _, line in pending))
            stream.flush()
            os.fsync(stream.fileno())


@contextmanager
def resumable(path: Path, work: Path, identity: str) -> Iterator[Journal]:
    """A journal and a folder to fill below `work`; the folder becomes `path` by one rename at the end.

    Both stay when the process is killed or interrupted, and are found again by a rewrite of the same
    `identity`; another one starts afresh. An error removes them.

    Raises:
        ConfigError: `path` exists already.
    """
    refuse_existing(path)
    with clear_disk_errors(path):
        done = _read(work / _NAME, identity)
        if done is None:
            shutil.rmtree(work, ignore_errors=True)
            (work / "model").mkdir(parents=True)
            (work / _NAME).write_text(json.dumps({"identity": identity}) + "\n", encoding="utf-8")
        try:
            yield Journal(work / "model", work / _NAME, done or {})
            path.parent.mkdir(parents=True, exist_ok=True)
            os.rename(work / "model", path)
        except Exception:
            shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)


def _read(file: Path, identity: str) -> dict[str, dict[str, Any]] | None:
    """The finished tensors of a journal; None when it is another rewrite's. A line cut short is no line."""
    if not file.is_file() or not (file.parent / "model").is_dir():
        return None
    entries = []
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    if not entries or entries[0].get("identity") != identity:
        return None
    return {entry["name"]: entry for entry in entries[1:]}
