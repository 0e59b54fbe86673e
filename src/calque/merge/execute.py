"""Writing the tensors of a rewrite: straight to their places, while the next ones are read and computed.

The calling thread computes. A thread of `merge.stream` reads ahead of it, and one here rounds, checks and
writes behind it; what waits between them is bounded in bytes.
"""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from calque.disk import write_json
from calque.errors import ModelError
from calque.machine import keep_freed_memory, peak_memory
from calque.merge.journal import Journal
from calque.model.files import INDEX, WEIGHTS
from calque.model.tensors import DTYPES, TensorInfo, as_bytes, lay_out, not_finite
from calque.progress import Bar, bar, say

if TYPE_CHECKING:
    from calque.merge.rewrite import Row

SHARD_BYTES = 5_000_000_000
_PIECE = 1 << 18  # larger single writes are slower: the kernel then looks for large pages
_WAITING = 64 << 20  # bytes of computed blocks that may wait to be written
_AHEAD = 256 << 20  # bytes of the next tensor that the kernel is asked to read
_STRETCH = 256 << 20  # bytes copied in one go; what a kill undoes
_SAMPLE = 1 << 16
_NO_KERNEL_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})

Inspect = Callable[["Row", TensorInfo], Mapping[str, Any]]


def nbytes(row: Row) -> int:
    """Bytes of a row's tensor in the output."""
    return DTYPES[row.dtype].itemsize * math.prod(row.shape)


def write_tensors(
    rows: Sequence[Row],
    journal: Journal,
    label: str,
    *,
    counts: MutableMapping[str, int],
    tables: Mapping[str, MutableMapping[str, Any]],
    inspect: Inspect | None = None,
) -> dict[str, dict[str, Any]]:
    """Write all rows into one file, or into shards with an index, below the journal's folder.

    Args:
        rows: the tensors; those that the journal has finished are left as they are.
        journal: where to write, and what is there already.
        label: what the progress bar says.
        counts: what the rows' functions count; what an earlier attempt counted is added at the end.
        tables: what the rows' functions note of their tensor, by its name; that of an earlier attempt is
            put back.
        inspect: asked about every tensor once it is written.

    Returns:
        Tensor name -> what `inspect` says about it.
    """
    keep_freed_memory()
    files = _lay_out(rows, journal.folder)
    by_name = {row.name: row for row in rows}
    known = {name: dict(entry) for name, entry in journal.done.items() if name in by_name}
    if known:
        say(f"{label}: {len(known)} of {len(rows)} tensors were written before; going on after them")
    with ExitStack() as stack:
        shown = stack.enter_context(bar(f"write {label}", sum(map(nbytes, rows)), "B"))
        targets = {file: stack.enter_context(_reserved(file, *content)) for file, content in files.items()}
        stack.callback(journal.stop)
        put = stack.enter_context(_writer())
        job = _Job(put, journal, counts, tables, inspect, known, shown, len(rows))
        for file, (_, infos) in files.items():
            job.run([by_name[name] for name in infos], infos, targets[file])
        put(journal.flush, 0)
        for target in targets.values():
            put(partial(os.fsync, target), 0)
    for entry in journal.done.values():
        for name, count in entry.get("counts", {}).items():
            counts[name] = counts.get(name, 0) + count
        for table, value in entry.get("noted", {}).items():
            tables[table][entry["name"]] = value
    for name, count in counts.items():
        say(f"{label}: {name}: {count} of {len(rows)} tensors")
    _write_index(files, journal.folder)
    return {name: known[name].get("found", {}) for name in by_name}


def _lay_out(rows: Sequence[Row], folder: Path) -> dict[Path, tuple[bytes, dict[str, TensorInfo]]]:
    """File -> header and byte ranges, in the order of the rows."""
    shards: list[list[Row]] = [[]]
    size = 0
    for row in rows:
        if shards[-1] and size + nbytes(row) > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(row)
        size += nbytes(row)
    names = [WEIGHTS]
    if len(shards) > 1:
        names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    return {
        folder / name: lay_out([(row.name, row.dtype, row.shape) for row in shard], folder / name)
        for name, shard in zip(names, shards, strict=True)
    }


@contextmanager
def _reserved(file: Path, header: bytes, infos: Mapping[str, TensorInfo]) -> Iterator[int]:
    """A file with its space reserved and its header written; what it holds already stays."""
    target = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.posix_fallocate(target, 0, max(info.stop for info in infos.values()))
        os.pwrite(target, header, 0)
        yield target
    finally:
        os.close(target)


def _write_index(files: Mapping[Path, tuple[bytes, dict[str, TensorInfo]]], folder: Path) -> None:
    if len(files) > 1:
        infos = [info for _, found in files.values() for info in found.values()]
        where = {name: file.name for file, (_, found) in files.items() for name in found}
        total = sum(info.nbytes for info in infos)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


Put = Callable[[Callable[[], None], int], None]


class _Job:
    """The tensors of one rewrite on their way to the writing thread."""

    def __init__(
        self,
        put: Put,
        journal: Journal,
        counts: MutableMapping[str, int],
        tables: Mapping[str, MutableMapping[str, Any]],
        inspect: Inspect | None,
        known: dict[str, dict[str, Any]],
        shown: Bar,
        total: int,
    ) -> None:
        self.put, self.journal, self.inspect = put, journal, inspect
        self.counts, self.tables = counts, tables
        self.known, self.shown, self.total = known, shown, total

    def run(self, rows: Sequence[Row], infos: Mapping[str, TensorInfo], target: int) -> None:
        """Compute and copy the rows of one file, in its order."""
        for row in rows:
            if row.name in self.journal.done:
                self.shown.update(infos[row.name].nbytes)
        left = [row for row in rows if row.name not in self.journal.done]
        stretch: list[Row] = []
        for place, row in enumerate(left):
            if stretch and not _follows(stretch, row, infos):
                self._copy(stretch, infos, target)
                stretch = []
            if row.function is None:
                stretch.append(row)
                continue
            for following in left[place + 1 : place + 2]:
                _read_soon(following)
            before = dict(self.counts)
            self._compute(row, infos[row.name], target)
            counted = {n: c - before.get(n, 0) for n, c in self.counts.items() if c != before.get(n, 0)}
            self.put(partial(self._finish, row, infos[row.name], target, counted), 0)
        self._copy(stretch, infos, target)

    def _copy(self, rows: Sequence[Row], infos: Mapping[str, TensorInfo], target: int) -> None:
        """Copy rows that lie side by side, in their source as in the output, in one go."""
        if not rows:
            return
        first, last = rows[0].inputs[0].info, rows[-1].inputs[0].info
        whole = dataclasses.replace(first, stop=last.stop)
        self.put(partial(copy_bytes, whole, target, infos[rows[0].name].start), 0)
        for row in rows:  # what is copied can be looked at in its source, while the other thread copies
            found = self._inspected(row, row.inputs[0].info)
            self.put(partial(self._finish, row, infos[row.name], target, {}, found), 0)

    def _compute(self, row: Row, info: TensorInfo, target: int) -> None:
        """Hand the computed blocks over one after another."""
        place, width = info.start, DTYPES[row.dtype].itemsize
        for block in row.function(*row.inputs) if row.function else ():
            if place + block.numel() * width > info.stop:
                raise ModelError(
                    f"tensor '{row.name}': more numbers were computed than its shape {row.shape} has"
                )
            size = block.numel() * block.element_size()
            self.put(partial(_write_block, row, info, block, target, place), size)
            place += block.numel() * width
        if place != info.stop:
            raise ModelError(
                f"tensor '{row.name}': {place - info.start} bytes were computed, its shape {row.shape} "
                f"has {info.nbytes}"
            )

    def _inspected(self, row: Row, written: TensorInfo) -> dict[str, Any]:
        return dict(self.inspect(row, written)) if self.inspect else {}

    def _finish(
        self,
        row: Row,
        info: TensorInfo,
        target: int,
        counted: Mapping[str, int],
        found: dict[str, Any] | None = None,
    ) -> None:
        if row.function is None:
            _check_copy(row, info)
        found = self._inspected(row, info) if found is None else found
        self.known[row.name] = {"found": found}
        noted = {name: table[row.name] for name, table in self.tables.items() if row.name in table}
        self.journal.finished(target, row.name, {"found": found, "counts": dict(counted), "noted": noted})
        peak = f"peak {peak_memory() / 1e6:.0f} MB"
        self.shown.update(info.nbytes, f"{len(self.known)} of {self.total} tensors, {peak}")


def _follows(stretch: Sequence[Row], row: Row, infos: Mapping[str, TensorInfo]) -> bool:
    """Whether a row is a copy of what lies right behind the last of `stretch`, and goes right behind it."""
    if row.function is not None:
        return False
    before, here = stretch[-1].inputs[0].info, row.inputs[0].info
    size = here.stop - stretch[0].inputs[0].info.start
    beside = (before.file, before.stop) == (here.file, here.start)
    return beside and infos[stretch[-1].name].stop == infos[row.name].start and size <= _STRETCH


def _read_soon(row: Row) -> None:
    """Ask the kernel to fetch the row's inputs while the row before it is computed."""
    for source in row.inputs:
        with source.info.file.open("rb", buffering=0) as stream:
            size = min(source.info.nbytes, _AHEAD // len(row.inputs))
            os.posix_fadvise(stream.fileno(), source.info.start, size, os.POSIX_FADV_WILLNEED)


@contextmanager
def _writer() -> Iterator[Put]:
    """A thread that runs jobs in order; `put(job, bytes)` waits while too many bytes are in the queue."""
    jobs: deque[tuple[Callable[[], None] | None, int]] = deque()
    changed = threading.Condition()
    state: dict[str, Any] = {"waiting": 0, "error": None}

    def work() -> None:
        while True:
            with changed:
                changed.wait_for(lambda: jobs)
                job, size = jobs.popleft()
            if job is None:
                return
            try:
                if state["error"] is None:
                    job()
            except BaseException as error:  # raised again in the thread that computes
                state["error"] = error
            del job
            with changed:
                state["waiting"] -= size
                changed.notify_all()

    def put(job: Callable[[], None] | None, size: int) -> None:
        with changed:
            changed.wait_for(lambda: not state["waiting"] or state["waiting"] + size <= _WAITING)
            if state["error"] is not None and job is not None:
                raise state["error"]
            jobs.append((job, size))
            state["waiting"] += size
            changed.notify_all()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield put
    except BaseException:
        state["error"] = state["error"] or InterruptedError()
        raise
    finally:
        put(None, 0)
        thread.join()
    if state["error"] is not None:
        raise state["error"]


def copy_bytes(source: TensorInfo, target: int, start: int) -> None:
    """Copy a byte range from file to file inside the kernel, or in pieces where it can not do that."""
    with source.file.open("rb", buffering=0) as stream:
        done = 0
        try:
            while done < source.nbytes:
                left = min(source.nbytes - done, 1 << 30)
                count = os.copy_file_range(stream.fileno(), target, left, source.start + done, start + done)
                if count == 0:
                    break
                done += count
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
        while done < source.nbytes:
            block = os.pread(stream.fileno(), min(_PIECE, source.nbytes - done), source.start + done)
            if not block:
                raise ModelError(f"{source.file}: became shorter while it was copied")
            _write_all(target, memoryview(block), start + done)
            done += len(block)


def _check_copy(row: Row, written: TensorInfo) -> None:
    """Compare beginning, middle and end of a copy with its source.

    Reading all of it back would show the page cache, not the disk, and double the time.
    """
    source = row.inputs[0].info
    size = min(_SAMPLE, source.nbytes)
    with source.file.open("rb", buffering=0) as one, written.file.open("rb", buffering=0) as two:
        for place in (0, (source.nbytes - size) // 2, source.nbytes - size):
            mine = os.pread(one.fileno(), size, source.start + place)
            if len(mine) != size or mine != os.pread(two.fileno(), size, written.start + place):
                raise ModelError(
                    f"tensor '{row.name}': the copy differs from {source.file}; is the disk sound?"
                )


def _write_block(row: Row, info: TensorInfo, block: torch.Tensor, target: int, place: int) -> None:
    """Round a computed block once, and write it."""
    rounded = block.to(DTYPES[row.dtype]).contiguous()
    if rounded.is_floating_point() and not_finite(rounded) is not None:
        _look_at_inputs(row)
        row_number = (place - info.start) // info.row_bytes
        raise ModelError(
            f"tensor '{row.name}': NaN or Inf after rounding to {row.dtype}, near row {row_number}"
        )
    _write_all(target, as_bytes(rounded), place)


def _look_at_inputs(row: Row) -> None:
    """Raise ModelError if it was in one of a row's inputs that something is not finite."""
    from calque.merge.stream import finite

    for source in row.inputs:
        first = 0
        for block in source.blocks() if source.info.is_float else ():
            finite(source, first, block)
            first += len(block) if block.dim() else 1


def _write_all(target: int, data: memoryview, place: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(target, data[done : done + _PIECE], place + done)
