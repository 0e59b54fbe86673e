"""The published files of benchmarks, read as plain records that know their file and line.

A record is a dictionary of what the file says, and under "where" its place, "file:line", for messages.
Nothing is repaired: whatever is not as published is a DataError that says where.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from calque.data.read import blocks, cells, ending, lines
from calque.errors import DataError

Row = dict[str, Any]
T = TypeVar("T")


def records(path: Path, header: Sequence[str] | None = None) -> Iterator[Row]:
    """The records of a flat file, each with its place under "where".

    Args:
        path: .jsonl, .json (a list of objects, or such a list under "data"), .tsv, .csv, .parquet, .txt (each
            line a record with its "text"); .gz and .zst of the text formats are unpacked on the way.
        header: names of the columns of a .tsv or .csv whose first line is data already; None where the first
            line names them.

    Raises:
        DataError: No such file, an unknown ending, no record at all, a malformed line; with file and line.
    """
    reader = _READERS.get(ending(path))
    if reader is None:
        raise DataError(f"{path}: unknown kind of file; a benchmark's records are in {', '.join(_READERS)}")
    empty = True
    for row in reader(path, header):
        empty = False
        yield row
    if empty:
        raise DataError(f"{path}: no record in it")


def squad(path: Path) -> Iterator[Row]:
    """The questions of nested SQuAD JSON, flat: id, question, context, answers, title, passage, where.

    `answers` is a list of (text, start); `passage` numbers the context within the file ("3.1"), so that
    questions about one text can be drawn together.

    Raises:
        DataError: Another structure, an answer that does not stand at its offset, no question at all.
    """
    top = _document(path)
    if not isinstance(top, dict) or not isinstance(top.get("data"), list):
        raise DataError(f'{path}: not SQuAD\'s format; it is {{"data": [{{"paragraphs": [...]}}]}}')
    empty = True
    for a, article in enumerate(top["data"]):
        for p, paragraph in enumerate(_listed(article, "paragraphs", f"{path}: data[{a}]")):
            where = f"{path}: data[{a}].paragraphs[{p}]"
            context = needed({**_object(paragraph, where), "where": where}, "context", str)
            for q, question in enumerate(_listed(paragraph, "qas", where)):
                empty = False
                place = f"{where}.qas[{q}]"
                yield _question(question, context, place) | {
                    "title": str(article.get("title", "")),
                    "passage": f"{a}.{p}",
                }
    if empty:
        raise DataError(f"{path}: no question in it")


def needed(row: Row | Any, name: str, kind: type[T]) -> T:
    """A field that a record must have, of that type; a text may not be blank.

    Raises:
        DataError: It is absent, of another type or blank; says where.
    """
    value = row.get(name)
    where = row.get("where", "record")
    if value is None:
        has = ", ".join(str(key) for key in row if key != "where") or "nothing"
        raise DataError(f"{where}: no '{name}'; the record has {has}")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise DataError(f"{where}: '{name}' is {value!r:.60}, expected {kind.__name__}")
    if isinstance(value, str) and not value.strip():
        raise DataError(f"{where}: '{name}' is blank")
    return value


def unique(rows: Iterable[Row], name: str) -> Iterator[Row]:
    """The records as they come; one with a name that came before is a DataError that names both places."""
    seen: dict[str, str] = {}
    for row in rows:
        value, where = str(row.get(name)), str(row.get("where", "record"))
        if value in seen:
            raise DataError(f"{where}: {name} '{value}' is given twice, first at {seen[value]}")
        seen[value] = where
        yield row


def locate(path: Path, *names: str) -> Path:
    """The file itself, or the first of these names (globs) that lies in the folder or below it.

    Raises:
        DataError: No such file or folder, or none of the names in it.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    for name in names:
        for found in sorted(path.rglob(name)):
            return found
    raise DataError(f"{path}: no {' or '.join(names)} in this folder")


def _jsonl(path: Path, header: Sequence[str] | None) -> Iterator[Row]:
    for number, line in lines(path):
        if line.strip():
            where = f"{path}:{number}"
            yield {**_object(_parse(line, where), where), "where": where}


def _json(path: Path, header: Sequence[str] | None) -> Iterator[Row]:
    top = _document(path)
    listed = top.get("data") if isinstance(top, dict) else top
    if not isinstance(listed, list):
        raise DataError(f"{path}: {type(top).__name__}; expected a list of objects")
    for number, row in enumerate(listed):
        where = f"{path}: [{number}]"
        yield {**_object(row, where), "where": where}


def _document(path: Path) -> Any:
    text = b"".join(blocks(path))
    if not text.strip():
        raise DataError(f"{path}: an empty file")
    try:
        return json.loads(text.removeprefix(b"\xef\xbb\xbf").decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from None


def _parse(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON ({error.msg} at character {error.pos + 1})") from None


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: {type(value).__name__} {value!r:.40}; expected an object")
    return value


def _table(path: Path, header: Sequence[str] | None) -> Iterator[Row]:
    names = list(header) if header else None
    for number, row in cells(path):
        if not any(cell.strip() for cell in row):
            continue
        where = f"{path}:{number}"
        if names is None:
            names = _header(where, row)
            continue
        if len(row) != len(names):
            raise DataError(f"{where}: {len(row)} columns, expected {len(names)} ({', '.join(names)})")
        yield {**dict(zip(names, row, strict=True)), "where": where}


def _header(where: str, cells: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if not all(names) or len(set(names)) < len(names):
        raise DataError(f"{where}: the first line must name every column, each once; it has {names}")
    return names


def _parquet(path: Path, header: Sequence[str] | None) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    if not path.is_file():
        raise DataError(f"{path}: no such file")
    number = 0
    try:
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield {**row, "where": f"{path}:{number}"}
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a sound Parquet file ({str(error).splitlines()[0]})") from None


def _text(path: Path, header: Sequence[str] | None) -> Iterator[Row]:
    return ({"text": line, "where": f"{path}:{number}"} for number, line in lines(path))


def _listed(parent: Any, name: str, where: str) -> list[Any]:
    found = _object(parent, where).get(name)
    if not isinstance(found, list):
        raise DataError(f"{where}: no list '{name}'")
    return found


def _question(question: Any, context: str, where: str) -> Row:
    row = {**_object(question, where), "where": where}
    answers = []
    for n, answer in enumerate(_listed(question, "answers", where)):
        place = f"{where}.answers[{n}]"
        at = {**_object(answer, place), "where": place}
        text, start = needed(at, "text", str), needed(at, "answer_start", int)
        if context[start : start + len(text)] != text or start < 0:
            found = context[max(start, 0) : max(start, 0) + len(text)]
            raise DataError(f"{place}: '{text:.40}' is not at {start} of the context, '{found:.40}' is")
        answers.append((text, start))
    return {
        "id": needed(row, "id", str),
        "question": needed(row, "question", str),
        "context": context,
        "answers": answers,
        "where": where,
    }


_READERS: dict[str, Callable[[Path, Sequence[str] | None], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".tsv": _table,
    ".csv": _table,
    ".parquet": _parquet,
    ".txt": _text,
}
