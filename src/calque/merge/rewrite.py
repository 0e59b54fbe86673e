"""The executor behind every change of weights: a new checkpoint, written tensor by tensor.

A `Rewrite` says, for each tensor of the output, where it comes from and what is done to it. Writing takes
the memory of the blocks in hand, whatever the size of the model; the output folder appears by one rename,
after it has been reloaded and checked.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from calque.disk import new_folder, write_json, write_text
from calque.errors import ConfigError, DataError, ModelError
from calque.merge.match import RowOrder
from calque.model.check import check_product, check_same_tokenizer, generation_settings
from calque.model.checkpoint import Checkpoint
from calque.model.files import CONFIG, GENERATION, INDEX, TOKENIZER, WEIGHTS, companions
from calque.model.tensors import DTYPES, TensorInfo, as_bytes, lay_out, same_bytes
from calque.progress import Bar, bar

Blocks = Iterable[torch.Tensor]
_SHARD_BYTES = 5_000_000_000
_CHUNK = 16 << 20
_NO_KERNEL_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


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
        notes: counts and choices worth keeping; written to rewrite.json beside the weights.
        sample: some of the user's text; the product's tokenizer must give each piece back.
        passes: what must be known of the whole model before the first row is computed, in this order.
    """

    base: Checkpoint
    rows: tuple[Row, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, str] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    sample: Sequence[str] = ()
    passes: Sequence[Pass] = ()

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
        return sum(_nbytes(row) for row in self.rows)

    def write(self, folder: Path, *, text: Sequence[str] = ()) -> Checkpoint:
        """Write the checkpoint to the new `folder`; it appears whole and checked, or not at all.

        Args:
            folder: the new model folder, a plain Hugging Face one.
            text: more of the user's text, beside `sample`.

        Raises:
            ConfigError: `folder` exists, or is one of the inputs.
            DataError: the disk is full or read-only.
            ModelError: what was computed is no sound model.
        """
        self._refuse_inputs(folder)
        _refuse_full_disk(folder, self.nbytes)
        with new_folder(folder) as part:
            for one in self.passes:
                one.run()
            written = _write_tensors(self.rows, part, folder.name.strip("."))
            self._write_company(part)
            _check_copies(self.rows, written)
            computed = {row.name for row in self.rows if row.function is not None}
            try:
                self._check(Checkpoint.at(part), computed, text)
            except ModelError as error:  # the user knows the folder by its final name only
                raise ModelError(str(error).replace(str(part), str(folder))) from error
        return Checkpoint.at(folder)

    def _check(self, product: Checkpoint, computed: Collection[str], text: Sequence[str]) -> None:
        if self.tokenizer is not None:
            check_same_tokenizer(product, self.tokenizer["tokenizer.json"], text)
        check_product(product, self.base, computed, text)

    def _refuse_inputs(self, folder: Path) -> None:
        inputs = {source.checkpoint.folder.resolve() for row in self.rows for source in row.inputs}
        if folder.resolve() in inputs | {self.base.folder.resolve()}:
            raise ConfigError(f"{folder} is an input as well as the output; give another -o")

    def _write_company(self, part: Path) -> None:
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
        if self.notes:
            write_json(part / "rewrite.json", dict(self.notes))


def _check_copy(row: Row) -> None:
    if len(row.inputs) != 1:
        raise ModelError(f"tensor '{row.name}' is to be copied from {len(row.inputs)} tensors; needed is one")
    info = row.inputs[0].info
    if (info.dtype, info.shape) != (row.dtype, row.shape):
        raise ModelError(
            f"tensor '{row.name}' ({row.dtype} {row.shape}) can not be a copy of {info.dtype} {info.shape}"
        )


def _changed(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(settings)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        result[key] = _changed(old, value) if both else value  # pyright: ignore
    return result


def _nbytes(row: Row) -> int:
    return DTYPES[row.dtype].itemsize * math.prod(row.shape)


def _refuse_full_disk(folder: Path, nbytes: int) -> None:
    parent = next(p for p in folder.absolute().parents if p.exists())
    free = shutil.disk_usage(parent).free
    if free < nbytes:
        raise DataError(
            f"{folder}: needs {nbytes / 1e6:.1f} MB, {free / 1e6:.1f} MB are free; nothing was written"
        )


def _write_tensors(rows: Sequence[Row], folder: Path, label: str) -> dict[str, TensorInfo]:
    """Write all rows into one file, or into shards with an index; returns where each tensor lies."""
    shards = _shards(rows)
    written: dict[str, TensorInfo] = {}
    with bar(f"write {label}", sum(map(_nbytes, rows)), "B") as shown:
        for number, shard in enumerate(shards, 1):
            name = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            written |= _write_file(shard, folder / name, shown)
    if len(shards) > 1:
        total = sum(info.nbytes for info in written.values())
        where = {name: info.file.name for name, info in written.items()}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
    return written


def _shards(rows: Sequence[Row]) -> list[list[Row]]:
    shards: list[list[Row]] = [[]]
    size = 0
    for row in rows:
        if shards[-1] and size + _nbytes(row) > _SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(row)
        size += _nbytes(row)
    return shards


def _write_file(rows: Sequence[Row], file: Path, shown: Bar) -> dict[str, TensorInfo]:
    """One safetensors file, its space reserved first, each tensor written straight to its place."""
    header, infos = lay_out([(row.name, row.dtype, row.shape) for row in rows], file)
    with file.open("wb", buffering=0) as stream:
        target = stream.fileno()
        os.posix_fallocate(target, 0, max(info.stop for info in infos.values()))
        os.pwrite(target, header, 0)
        for row in rows:
            info = infos[row.name]
            if row.function is None:
                _copy_bytes(row.inputs[0].info, target, info.start)
            else:
                _write_blocks(row, row.function(*row.inputs), target, info)
            shown.update(info.nbytes, row.name)
        os.fsync(target)
    return infos


def _copy_bytes(source: TensorInfo, target: int, start: int) -> None:
    """Copy a byte range from file to file inside the kernel, or in chunks where it can not do that."""
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
            block = os.pread(stream.fileno(), min(_CHUNK, source.nbytes - done), source.start + done)
            if not block:
                raise ModelError(f"{source.file}: became shorter while it was copied")
            _write_all(target, memoryview(block), start + done)
            done += len(block)


def _write_blocks(row: Row, blocks: Blocks, target: int, info: TensorInfo) -> None:
    """Round the computed blocks once, and write them one after another."""
    place = info.start
    for block in blocks:
        rounded = block.to(DTYPES[row.dtype]).contiguous()
        if rounded.is_floating_point() and not torch.isfinite(rounded.float()).all():
            raise ModelError(
                f"tensor '{row.name}': NaN or Inf after rounding to {row.dtype}, near row "
                f"{(place - info.start) // info.row_bytes}"
            )
        data = as_bytes(rounded)
        if place + len(data) > info.stop:
            raise ModelError(
                f"tensor '{row.name}': more numbers were computed than its shape {row.shape} has"
            )
        _write_all(target, data, place)
        place += len(data)
    if place != info.stop:
        raise ModelError(
            f"tensor '{row.name}': {place - info.start} bytes were computed, its shape {row.shape} "
            f"has {info.nbytes}"
        )


def _write_all(target: int, data: memoryview, place: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(target, data[done : done + (1 << 30)], place + done)


def _check_copies(rows: Sequence[Row], written: Mapping[str, TensorInfo]) -> None:
    """Every copied tensor, read back, must have the bytes of its source."""
    for row in rows:
        if row.function is None:
            source = row.inputs[0].info
            if not same_bytes(source, written[row.name]):
                raise ModelError(
                    f"tensor '{row.name}': the copy differs from {source.file}; is the disk sound?"
                )
