"""The safetensors format: where each tensor lies in a file, read and written by byte range.

The header is parsed and validated here, before any byte of a tensor is touched: a damaged file is refused
with the tensor and the file in the message, and reading takes no more memory than the rows asked for.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch

from calque.errors import ModelError

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}
_MAX_HEADER = 100_000_000
_FIRST_INF = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00}  # bits of infinity, without the sign


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: bytes `start` to `stop` of `file`, row-major, little-endian."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch calls it."""
        return DTYPES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Length of the byte range."""
        return self.stop - self.start

    @property
    def row_bytes(self) -> int:
        """Bytes of one step along the first axis; of the whole tensor when it has no axis."""
        return self.nbytes // self.shape[0] if self.shape else self.nbytes

    @property
    def is_float(self) -> bool:
        """Whether the numbers are floating-point (and so can be NaN)."""
        return self.torch_dtype.is_floating_point

    def read(self, rows: slice | None = None, stream: FileIO | None = None) -> torch.Tensor:
        """The tensor, or the rows `rows` (step 1) of its first axis, in the file's dtype.

        Who reads many times may keep the file open, as `stream`.
        """
        if rows is None or not self.shape:
            shape, start = self.shape, self.start
        else:
            first, last, step = rows.indices(self.shape[0])
            if step != 1:
                raise ValueError(f"rows are read one after another, not with step {step}")
            shape = (max(0, last - first), *self.shape[1:])
            start = self.start + first * self.row_bytes
        tensor = torch.empty(shape, dtype=self.torch_dtype)
        if tensor.numel():
            read_into(self.file, start, as_bytes(tensor), stream)
        return tensor

    def blocks(self, nbytes: int = 16 << 20) -> Iterator[tuple[int, torch.Tensor]]:
        """Pairs (first row, rows) of about `nbytes` bytes each, in order; a scalar is one block."""
        if not self.shape:
            yield 0, self.read()
            return
        step = max(1, nbytes // max(1, self.row_bytes))
        for first in range(0, self.shape[0], step):
            yield first, self.read(slice(first, first + step))


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor as writable bytes; nothing is copied."""
    return _bits(tensor).numpy().data


def read_into(file: Path, start: int, target: memoryview, stream: FileIO | None = None) -> None:
    """Fill `target` with the bytes of `file`, open as `stream` or not yet, from `start` on."""
    if stream is None:
        with file.open("rb", buffering=0) as opened:
            return read_into(file, start, target, opened)
    done = 0
    while done < len(target):
        count = os.preadv(stream.fileno(), [target[done : done + (1 << 30)]], start + done)
        if count == 0:
            raise ModelError(f"{file}: ends at byte {start + done}, although its header promises more")
        done += count


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Where every tensor of a safetensors file lies, in the order of the file.

    Raises:
        ModelError: the header is damaged, disagrees with the file's size, or names what can not be read.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(size - 8, _MAX_HEADER):
            raise ModelError(
                f"{file}: not a whole safetensors file ({size} bytes, header of {length} bytes); "
                "it was cut or damaged on its way: fetch it again"
            )
        raw = stream.read(length)
    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: damaged header ({error}); fetch the file again") from None
    if not isinstance(entries, dict):
        raise ModelError(f"{file}: the header is a {type(entries).__name__}, not a table of tensors")
    entries.pop("__metadata__", None)
    infos = {name: _entry(file, name, entry, 8 + length) for name, entry in entries.items()}
    _check_cover(file, infos, 8 + length, size)
    return dict(sorted(infos.items(), key=lambda item: item[1].start))


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for key, value in pairs:
        if key in keys:
            raise ValueError(f"'{key}' stands in it twice")
        keys[key] = value
    return keys


def _entry(file: Path, name: str, entry: Any, base: int) -> TensorInfo:
    where = f"{file}: tensor '{name}'"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ModelError(f"{where}: the header gives no dtype, shape and data_offsets for it")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in DTYPES:
        raise ModelError(f"{where}: unknown dtype {dtype!r}; known are {', '.join(DTYPES)}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ModelError(f"{where}: impossible shape {shape!r} or byte range {offsets!r}")
    if 0 in shape:
        raise ModelError(f"{where}: shape {tuple(shape)} holds no numbers; such a tensor can not be right")
    info = TensorInfo(file, dtype, tuple(shape), base + offsets[0], base + offsets[1])
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if info.nbytes != expected:
        raise ModelError(
            f"{where}: {dtype} of shape {tuple(shape)} takes {expected} bytes, its range has {info.nbytes}"
        )
    return info


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def _check_cover(file: Path, infos: Mapping[str, TensorInfo], base: int, size: int) -> None:
    """The ranges must lie side by side and fill the file exactly."""
    end, last = base, "the header"
    for name, info in sorted(infos.items(), key=lambda item: item[1].start):
        if info.start < end:
            raise ModelError(f"{file}: tensor '{name}' lies over the bytes of {last}")
        if info.start > end:
            raise ModelError(f"{file}: {info.start - end} bytes before tensor '{name}' belong to nothing")
        end, last = info.stop, f"tensor '{name}'"
    if end > size:
        raise ModelError(
            f"{file}: cut short: {size} bytes, but {last} ends at byte {end}; fetch the file again"
        )
    if end < size:
        raise ModelError(f"{file}: {size - end} bytes after {last} belong to nothing")


def same_bytes(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two tensors agree in dtype, shape and every bit."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    pairs = zip(one.blocks(), other.blocks(), strict=True)
    return all(torch.equal(_bits(a), _bits(b)) for (_, a), (_, b) in pairs)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def not_finite(block: torch.Tensor) -> tuple[int, str] | None:
    """(row, "NaN" or "Inf") of the first number of a floating-point tensor that is not finite."""
    if block.dtype.itemsize == 1:  # 8-bit floats have no isfinite
        block = block.to(torch.float32)
    if not block.numel():
        return None
    if block.dtype in _FIRST_INF:  # an all-ones exponent, seen in the bits: adding 16-bit floats is slow
        if int(block.view(torch.int16).bitwise_and(0x7FFF).max()) < _FIRST_INF[block.dtype]:
            return None
    elif torch.isfinite(block.sum()):  # one NaN or Inf would show in the sum
        return None
    finite = torch.isfinite(block)
    if finite.all():
        return None
    place = int((~finite).reshape(-1).nonzero()[0])
    row = place // max(1, block[0].numel()) if block.dim() else 0
    return row, "NaN" if torch.isnan(block.reshape(-1)[place]) else "Inf"


def lay_out(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], file: Path
) -> tuple[bytes, dict[str, TensorInfo]]:
    """Header bytes and byte ranges of a new file for tensors (name, dtype, shape), widest dtype first.

    The widest first and a header padded to 8 bytes keep every tensor aligned to its own items.
    """
    ordered = sorted(tensors, key=lambda item: -DTYPES[item[1]].itemsize)
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    ranges, end = {}, 0
    for name, dtype, shape in ordered:
        start, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        ranges[name] = (start, end)
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    base = 8 + len(text)
    infos = {
        name: TensorInfo(file, dtype, tuple(shape), base + ranges[name][0], base + ranges[name][1])
        for name, dtype, shape in ordered
    }
    return struct.pack("<Q", len(text)) + text, infos
