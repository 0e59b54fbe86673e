"""The executor behind every change of weights: a new checkpoint, written tensor by tensor.

A `Rewrite` says, for each tensor of the output, where it comes from and what is done to it. Writing takes
the memory of the blocks in hand, whatever the size of the model; the output folder appears by one rename,
after it has been reloaded and checked.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from calque.disk import new_folder, write_json, write_text
from calque.errors import ConfigError, DataError, ModelError
from calque.machine import keep_freed_memory, spare_core
from calque.merge.execute import Inspect, nbytes, write_tensors
from calque.merge.journal import Journal, resumable
from calque.merge.match import RowOrder
from calque.merge.plan import describe
from calque.model.check import check_product, check_same_tokenizer, generation_settings
from calque.model.checkpoint import Checkpoint
from calque.model.files import CONFIG, GENERATION, TOKENIZER, companions
from calque.model.tensors import TensorInfo
from calque.progress import bar

Blocks = Iterable[torch.Tensor]
_CHUNK = 16 << 20


@dataclass(frozen=True)
class Source:
    """One tensor of one checkpoint, as material of a row.

    Attributes:
        checkpoint: where it lies.
        name: its name there.
        order: for an embedding whose rows are matched by token: its rows in the output's order.
    """

    checkpoint: Checkpoint
    name: str
    order: RowOrder | None = None

    @property
    def info(self) -> TensorInfo:
        """Where it lies, its dtype and shape, as it is stored."""
        return self.checkpoint.info(self.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in the output's order of rows."""
        return self.order.shape if self.order else self.info.shape

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """The tensor or some of its rows, in the output's order and its own dtype."""
        return self.order.read(rows) if self.order else self.info.read(rows)

    def blocks(self, nbytes: int = _CHUNK) -> Iterator[torch.Tensor]:
        """Its rows in order, about `nbytes` at a time."""
        height = self.shape[0] if self.shape else 1
        step = max(1, nbytes // max(1, self.info.row_bytes)) if self.shape else 1
        return (self.read(slice(first, first + step)) for first in range(0, height, step))


@dataclass(frozen=True)
class Pass:
    """One reading of some tensors before any row is computed, for statistics over the whole model.

    Attributes:
        label: what the progress bar says.
        sources: groups of tensors of one shape.
        function: called with the number of the group and a block of each of its tensors (float32, the same
            rows, freshly allocated), for all groups in order.
        done: called at the end.
    """

    label: str
    sources: tuple[tuple[Source, ...], ...]
    function: Callable[[int, tuple[torch.Tensor, ...]], None]
    done: Callable[[], None] | None = None

    def run(self) -> None:
        """Stream all groups through `function`, then call `done`."""
        from calque.merge.stream import chunks

        keep_freed_memory()
        total = sum(source.info.nbytes for group in self.sources for source in group)
        with bar(self.label, total, "B") as shown:
            for index, group in enumerate(self.sources):
                for blocks in chunks(group):
                    self.function(index, blocks)
                shown.update(sum(source.info.nbytes for source in group), group[0].name)
        if self.done is not None:
            self.done()


@dataclass(frozen=True)
class Row:
    """One tensor of the output.

    Attributes:
        name: its name in the output.
        dtype: safetensors name of its dtype ("BF16").
        shape: its shape.
        inputs: the tensors that `function` gets, in this order.
        function: gives the rows of the tensor in order, as blocks of any height and precision; they are
            rounded once, to `dtype`. None: the single input is copied, bit by bit.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    inputs: tuple[Source, ...]
    function: Callable[..., Blocks] | None = None

    @classmethod
    def copy(cls, checkpoint: Checkpoint, name: str) -> Row:
        """The tensor `name` as it is."""
        info = checkpoint.info(name)
        return cls(name, info.dtype, info.shape, (Source(checkpoint, name),))


@dataclass(frozen=True)
class Rewrite:
    """A checkpoint still to be written.

    Attributes:
        base: gives every file besides the weights, and its configuration.
        rows: one for each tensor of the output.
        config: settings of config.json that change; a nested table changes only the keys it names.
        generation: settings of generation_config.json that change, if the base has that file.
        tokenizer: file name -> text of the new tokenizer; None keeps the base's.
        notes: counts and choices worth keeping; written to rewrite.json beside the weights. Tables that the
            rows' functions fill while they run, by the name of their tensor, survive a kill.
        sample: some of the user's text; the product's tokenizer must give each piece back.
        passes: what must be known of the whole model before the first row is computed, in this order.
        counts: what the rows' functions count while they run ("slerp -> lerp"); goes into the notes.
        inspect: asked about every row once it is written; what it says goes into the notes.
        spent: filled by `write`: "passes", "rows" and "check" -> {"wall": seconds, "processor": seconds}.
    """

    base: Checkpoint
    rows: tuple[Row, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, str] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    sample: Sequence[str] = ()
    passes: Sequence[Pass] = ()
    counts: MutableMapping[str, int] = field(default_factory=dict)
    inspect: Inspect | None = None
    spent: MutableMapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ModelError(f"two rows write the tensor '{twice}'")
        for row in self.rows:
            if row.function is None:
                _check_copy(row)

    @property
    def nbytes(self) -> int:
        """Bytes of all output tensors."""
        return sum(map(nbytes, self.rows))

    def write(
        self, folder: Path, *, text: Sequence[str] = (), work: Path | None = None, key: str = ""
    ) -> Checkpoint:
        """Write the checkpoint to the new `folder`; it appears whole and checked, or not at all.

        Args:
            folder: the new model folder, a plain Hugging Face one.
            text: more of the user's text, beside `sample`.
            work: a scratch folder on the same disk that outlives the process. Killed and called again with
                the same rewrite, `work` and `key`, writing goes on after the last tensor that is on disk.
            key: tells rewrites with different settings apart; functions can not be compared.

        Raises:
            ConfigError: `folder` exists, or is one of the inputs.
            DataError: the disk is full or read-only.
            ModelError: what was computed is no sound model.
        """
        self._refuse_inputs(folder)
        if work is not None:
            with resumable(folder, work, self._identity(key)) as journal:
                if not journal.done:
                    _refuse_full_disk(folder, self.nbytes)
                self._fill(journal, folder, text)
        else:
            _refuse_full_disk(folder, self.nbytes)
            with new_folder(folder) as part:
                self._fill(Journal(part, None, {}), folder, text)
        return Checkpoint.at(folder)

    def plan(self, folder: Path) -> str:
        """What `write` would do, in lines for a person: rows, bytes, passes, time; nothing is written.

        Raises:
            ConfigError: `folder` is one of the inputs.
            DataError: there is not enough room.
        """
        self._refuse_inputs(folder)
        _refuse_full_disk(folder, self.nbytes)
        return "\n".join([f"{folder} would be written from {self.base.folder}:", *describe(self)])

    def _fill(self, journal: Journal, folder: Path, text: Sequence[str]) -> None:
        """Write and check everything in the journal's folder."""
        with self._timed("passes"), spare_core():
            if any(row.name not in journal.done for row in self.rows):
                for one in self.passes:
                    one.run()
        with self._timed("rows"), spare_core():
            found = write_tensors(
                self.rows,
                journal,
                folder.name.strip(".").removesuffix(".part"),
                counts=self.counts,
                tables={key: value for key, value in self.notes.items() if isinstance(value, MutableMapping)},
                inspect=self.inspect,
            )
        self._write_company(journal.folder, found)
        computed = {row.name for row in self.rows if row.function is not None}
        product = Checkpoint.at(journal.folder)
        try:
            with self._timed("check"), spare_core():
                if self.tokenizer is not None:
                    check_same_tokenizer(product, self.tokenizer["tokenizer.json"], text)
                check_product(product, self.base, computed, text)
        except ModelError as error:  # the user knows the folder by its final name only
            raise ModelError(str(error).replace(str(journal.folder), str(folder))) from error

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        wall, processor = time.perf_counter(), time.process_time()
        yield
        spent = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
        self.spent[part] = {kind: round(seconds, 2) for kind, seconds in spent.items()}

    def _identity(self, key: str) -> str:
        """Changes with the rows, their inputs (by size and time) and everything else that is written."""
        rows = [
            (row.name, row.dtype, row.shape, row.function is None, [_stamp(s) for s in row.inputs])
            for row in self.rows
        ]
        content = [key, rows, self.config, self.generation, self.tokenizer]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def _refuse_inputs(self, folder: Path) -> None:
        inputs = {source.checkpoint.folder.resolve() for row in self.rows for source in row.inputs}
        inputs.add(self.base.folder.resolve())
        if folder.resolve() in inputs:
            raise ConfigError(f"{folder} is an input as well as the output; give another -o")
        if inside := inputs & set(folder.resolve().parents):
            raise ConfigError(f"the output would lie inside the input {min(inside)}; give another -o")

    def _write_company(self, part: Path, found: Mapping[str, Any]) -> None:
        """Everything besides the weights: the base's files, with what this rewrite changes."""
        for path in companions(self.base.folder):
            if self.tokenizer is None or path.name not in TOKENIZER:
                (part / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.base.folder / path, part / path)
        config = _changed(self.base.config, self.config)
        config.pop("auto_map", None)  # names code of the base's folder, which is not copied
        write_json(part / CONFIG, config)
        if generation := generation_settings(self.base):
            write_json(part / GENERATION, _changed(generation, self.generation))
        for name, content in (self.tokenizer or {}).items():
            write_text(part / name, content)
        notes = dict(self.notes)
        notes |= {"counts": dict(self.counts)} if self.counts else {}
        notes |= {"tensors": found} if any(found.values()) else {}
        if notes:
            write_json(part / "rewrite.json", notes)


def _check_copy(row: Row) -> None:
    if len(row.inputs) != 1:
        raise ModelError(f"tensor '{row.name}' is to be copied from {len(row.inputs)} tensors; needed is one")
    info = row.inputs[0].info
    if (info.dtype, info.shape) != (row.dtype, row.shape):
        raise ModelError(
            f"tensor '{row.name}' ({row.dtype} {row.shape}) can not be a copy of {info.dtype} {info.shape}"
        )


def _stamp(source: Source) -> tuple[str, int, int, int]:
    state = source.info.file.stat()
    return str(source.info.file.resolve()), state.st_size, state.st_mtime_ns, source.info.start


def _changed(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(settings)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        result[key] = _changed(old, value) if both else value  # pyright: ignore
    return result


def _refuse_full_disk(folder: Path, nbytes: int) -> None:
    parent = next(p for p in folder.absolute().parents if p.exists())
    free = shutil.disk_usage(parent).free
    if free < nbytes:
        raise DataError(
            f"{folder}: needs {nbytes / 1e6:.1f} MB, {free / 1e6:.1f} MB are free; nothing was written"
        )
