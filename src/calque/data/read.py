"""Text files of the usual formats, read as records, with the file and line of whatever is wrong.

A record is the raw text of one or two sides with its place; cleaning (Unicode form, empty lines,
duplicates) comes later and is the same for all formats.

Columns and keys (CSV, TSV, JSON lines, Parquet): `text` for one side; `source` and `target` (`src`, `tgt`)
for two; or a column per language, named by its code or name ("ny", "nya_Latn", "Chichewa"); JSON and
Parquet also `{"translation": {"en": ..., "ny": ...}}` and `{"sides": {...}}`. `group`, `document` or `doc`
names the document; `target` (`label`) and `question` say more, in JSON and Parquet also `spans` and `weight`
(calque.data.marks). CSV and TSV without such a first line: one column is the text, two
are the two sides. CoNLL columns (`.conll`, `.conllu`): what is tagged are the spans.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from calque.data.columns import sentences, spans
from calque.data.marks import WORDS, marks
from calque.errors import ConfigError, DataError
from calque.language import Language

_BLOCK = 1 << 20
_SIDES = {"source": 0, "src": 0, "text": 0, "sentence": 0, "context": 0, "target": 1, "tgt": 1}
_GROUPS = ("group", "document", "doc")
_BINARY = {
    b"PK\x03\x04": "a zip, Word or Excel file",
    b"%PDF": "a PDF file",
    b"\x1f\x8b": "a gzip file without the ending .gz",
    b"\x28\xb5\x2f\xfd": "a Zstandard file without the ending .zst",
    b"PAR1": "a Parquet file without the ending .parquet",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"GGUF": "a GGUF model",
    b"\xd0\xcf\x11\xe0": "an old Word or Excel file",
}


class Record(NamedTuple):
    """One raw item: its line or row, its texts by language code, its document, and what else it says."""

    line: int
    sides: Mapping[str, str]
    group: str = ""
    marks: Mapping[str, Any] = {}


def ending(file: Path) -> str:
    """The ending that says the format, without .gz and .zst: ".tsv" of "a.tsv.gz"."""
    name = file.name.lower().removesuffix(".gz").removesuffix(".zst")
    return Path(name).suffix


def records(file: Path, languages: Sequence[str]) -> Iterator[Record]:
    """Read a file of any known format.

    Args:
        file: its ending says the format; .gz and .zst are unpacked on the way.
        languages: codes of the one or two sides that are wanted.

    Raises:
        DataError: file and line of what is wrong, and what would be right.
    """
    reader = READERS.get(ending(file))
    if reader is None:
        raise DataError(
            f"{file}: unknown kind of text file; known are {', '.join(READERS)}, and .gz .zst of them"
        )
    return reader(file, languages)


def blocks(file: Path) -> Iterator[bytes]:
    """The bytes of a file, unpacked, in blocks; a damaged archive is a DataError."""
    try:
        if file.name.lower().endswith(".gz"):
            with gzip.open(file) as stream:
                while block := stream.read(_BLOCK):
                    yield block
        elif file.name.lower().endswith(".zst"):
            yield from _zstd_blocks(file)
        else:
            with file.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    yield block
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file}: damaged or cut gzip file ({error})") from None
    except IsADirectoryError:
        raise DataError(f"{file}: is a folder") from None
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except PermissionError:
        raise DataError(f"{file}: can not be read (permissions)") from None


def _zstd_blocks(file: Path) -> Iterator[bytes]:
    import zstandard

    unpack = zstandard.ZstdDecompressor().decompressobj()
    with file.open("rb") as stream:
        try:
            while packed := stream.read(_BLOCK):
                while packed:
                    if unpack.eof:  # a file may be several frames one after the other
                        unpack = zstandard.ZstdDecompressor().decompressobj()
                    yield unpack.decompress(packed)
                    packed = unpack.unused_data if unpack.eof else b""
        except zstandard.ZstdError as error:
            raise DataError(f"{file}: damaged Zstandard file ({error})") from None
    if not unpack.eof:
        raise DataError(f"{file}: cut Zstandard file; it ends in the middle of a frame")


def lines(file: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text without its end) of each line; UTF-8 is checked, a byte order mark left out."""
    number, rest, first = 0, b"", True
    for block in blocks(file):
        if first:
            _refuse_binary(file, block)
            block, first = block.removeprefix(b"\xef\xbb\xbf"), False
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            number += 1
            yield number, _decode(file, number, line)
    if rest:
        yield number + 1, _decode(file, number + 1, rest)


def _refuse_binary(file: Path, block: bytes) -> None:
    kind = next((what for magic, what in _BINARY.items() if block.startswith(magic)), "")
    if kind or b"\0" in block:
        kind = kind or "a binary file"
        raise DataError(f"{file}: {kind}, not text; give UTF-8 text in one of {' '.join(READERS)}")


def _decode(file: Path, number: int, line: bytes) -> str:
    if b"\0" in line:
        raise DataError(f"{file}:{number}: a zero byte; the file is not text, or damaged")
    try:
        return line.removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}:{number}: not UTF-8: byte {line[error.start]:#04x} at byte {error.start + 1} of the "
            "line; save the file as UTF-8 (for instance: iconv -f WINDOWS-1252 -t UTF-8)"
        ) from None


def _plain(file: Path, languages: Sequence[str]) -> Iterator[Record]:
    """One example per line, empty lines among them."""
    if len(languages) > 1:
        raise DataError(
            f"{file}: plain text has one side; parallel text is a pair 'a.txt,b.txt', a .tsv, .jsonl or .tmx"
        )
    return (Record(number, {languages[0]: line}) for number, line in lines(file))


def _tagged(file: Path, languages: Sequence[str]) -> Iterator[Record]:
    """Sentences of tagged words; what is tagged are the spans."""
    if len(languages) > 1:
        raise DataError(f"{file}: tagged words have one side; parallel text is a .tsv, .jsonl or .tmx")
    for number, words, tags in sentences(file, lines(file), universal=ending(file) == ".conllu"):
        marked = {"spans": {languages[0]: spans(words, tags)}}
        yield Record(number, {languages[0]: " ".join(words)}, marks=marked)


def _table(file: Path, languages: Sequence[str]) -> Iterator[Record]:
    """Rows of cells with or without a first line of column names."""
    columns: list[str] | None = None
    for number, row in cells(file):
        if columns is None:
            columns = _header(row, languages)
            if columns:
                continue
            columns = _nameless(file, row, languages)
        if not any(cell.strip() for cell in row):
            yield Record(number, {})
        elif len(row) != len(columns):
            raise DataError(
                f"{file}:{number}: {len(row)} columns, should be {len(columns)} ({', '.join(columns)})"
            )
        else:
            place, named = f"{file}:{number}", dict(zip(columns, row, strict=True))
            sides = _sides(place, named, languages)
            said = {name: named[name] for name in WORDS if named.get(name)}
            yield Record(number, sides, _group(named), marks(place, said, sides, languages))


def _header(row: Sequence[str], languages: Sequence[str]) -> list[str] | None:
    """The column names when the first line is one, in lower case; else None."""
    names = [cell.strip() for cell in row]
    if any(len(name) > 40 for name in names):
        return None
    # A dictionary may begin with a word that is also the code of some language ("de" and "of"): one of the
    # two names must be for a side that is wanted, or both be languages.
    wanted = [n for n in names if n.lower() in _SIDES or any(_same(n, code) for code in languages)]
    if not wanted and not all(_code(name) for name in names):
        return None
    # A short first sentence may happen to be the name of a language ("Tonga"): one column needs a key word.
    if len(names) == 1 and names[0].lower() not in _SIDES:
        return None
    return [name.lower() if name.lower() in (*_SIDES, *_GROUPS, *WORDS) else name for name in names]


def _nameless(file: Path, row: Sequence[str], languages: Sequence[str]) -> list[str]:
    if len(row) == 1 and len(languages) == 1:
        return ["text"]
    if len(row) == 2:
        return ["source", "target"]
    raise DataError(
        f"{file}:1: {len(row)} columns and no names for them; put a first line with the names text, or "
        f"source and target, or the language codes {', '.join(languages)}"
    )


def cells(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a table in text, as (number of the line, cells), and nothing skipped.

    In a .tsv tabs divide cells and quotation marks are ordinary characters; in a .csv commas do, and
    quotation marks may hold commas and line ends.

    Raises:
        DataError: a .csv whose quotation marks do not close.
    """
    if ending(file) != ".csv":
        yield from ((number, line.split("\t")) for number, line in lines(file))
        return
    csv.field_size_limit(_BLOCK * 64)
    reader = csv.reader((line + "\n" for _, line in lines(file)), strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: not valid CSV ({error})") from None


def _jsonl(file: Path, languages: Sequence[str]) -> Iterator[Record]:
    for number, line in lines(file):
        if not line.strip():
            yield Record(number, {})
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{file}:{number}: not valid JSON ({error.msg} at character {error.pos + 1})"
            ) from None
        if isinstance(row, str):
            row = {"text": row}
        yield of_row(f"{file}:{number}", number, row, languages)


def of_row(place: str, number: int, row: Any, languages: Sequence[str]) -> Record:
    """The record of one mapping from names to values; `place` stands in the messages."""
    if not isinstance(row, Mapping):
        raise DataError(f'{place}: {type(row).__name__}, should be an object like {{"text": ...}}')
    inner = next((row[key] for key in ("sides", "translation") if isinstance(row.get(key), Mapping)), row)
    sides = _sides(place, inner, languages)
    return Record(number, sides, _group(row), marks(place, row, sides, languages))


def _sides(place: str, row: Mapping[str, Any], languages: Sequence[str]) -> dict[str, str]:
    """The wanted sides of a row, by language code or by the usual names."""
    found: dict[str, str] = {}
    for name, value in row.items():
        key = str(name).lower()
        if key in _SIDES and _SIDES[key] < len(languages):
            code = languages[_SIDES[key]]
        else:
            code = next((code for code in languages if _same(str(name), code)), "")
        if code:
            value = "" if value is None else value
            if not isinstance(value, str):
                raise DataError(
                    f"{place}: {name!r} holds {type(value).__name__} {value!r:.40}, should be text"
                )
            found[code] = value
    if len(found) < len(languages):
        wanted = ", ".join(code for code in languages if code not in found)
        raise DataError(
            f"{place}: no text for {wanted} among {', '.join(map(str, row)) or 'nothing'}; name it text, or "
            "source and target, or by its language code"
        )
    return found


def _group(row: Mapping[str, Any]) -> str:
    return next((str(row[key]) for key in _GROUPS if row.get(key) not in (None, "")), "")


@lru_cache(maxsize=1024)
def _code(name: str) -> str:
    """The language code that a column name stands for, "" when it is none."""
    try:
        return Language.parse(name).code if name else ""
    except ConfigError:
        return ""


def _same(name: str, code: str) -> bool:
    """Whether a column name means this language; its script may be left out ("uz" for uzn_Cyrl)."""
    if name == code:
        return True
    found = _code(name) if len(name) <= 40 else ""
    return found == code or (bool(found) and "_" not in name and found[:3] == code[:3])


def _parquet(file: Path, languages: Sequence[str]) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    if file.suffix.lower() != ".parquet":
        raise DataError(f"{file}: Parquet is packed already; unpack it to .parquet")
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield of_row(f"{file}: row {number}", number, row, languages)
    except pyarrow.ArrowException as error:
        raise DataError(f"{file}: not a sound Parquet file ({str(error).splitlines()[0]})") from None


def _tmx(file: Path, languages: Sequence[str]) -> Iterator[Record]:
    """Translation units; those without the wanted languages count as empty."""
    from xml.etree.ElementTree import ParseError, XMLPullParser

    parser = XMLPullParser(["end"])
    number = 0
    try:
        for block in blocks(file):
            parser.feed(block)
            for _, element in parser.read_events():  # pyright: ignore
                if not isinstance(element, tuple) and element.tag.rpartition("}")[2] == "tu":  # pyright: ignore
                    number += 1
                    yield Record(number, _variants(element, languages))
                    element.clear()  # pyright: ignore
        parser.close()
    except ParseError as error:
        raise DataError(f"{file}:{error.position[0]}: not valid TMX ({error})") from None


def _variants(unit: Any, languages: Sequence[str]) -> dict[str, str]:
    sides: dict[str, str] = {}
    for variant in unit.iter():
        if variant.tag.rpartition("}")[2] != "tuv":
            continue
        spoken = variant.get("{http://www.w3.org/XML/1998/namespace}lang") or variant.get("lang") or ""
        segment = next((part for part in variant if part.tag.rpartition("}")[2] == "seg"), None)
        code = next((c for c in languages if _same(spoken, c) or _same(spoken.partition("-")[0], c)), "")
        if code and segment is not None:
            sides[code] = " ".join("".join(segment.itertext()).split())
    return sides


READERS: Mapping[str, Callable[[Path, Sequence[str]], Iterator[Record]]] = {
    ".txt": _plain,
    ".jsonl": _jsonl,
    ".tsv": _table,
    ".csv": _table,
    ".parquet": _parquet,
    ".tmx": _tmx,
    ".conll": _tagged,
    ".conllu": _tagged,
}
"""Ending -> its reader."""
