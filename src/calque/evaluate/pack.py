"""The words of one language that prompts and scores need: rows of `packs.tsv`, one for each language.

A word that a row lacks is taken from the English row, and noted, so that a result can say "English labels
used"; nothing falls back silently.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from calque.errors import DataError
from calque.language import Language

WORDS = (
    "question",
    "answer",
    "context",
    "choose",
    "translate",
    "step_answer",
    "because",
    "so",
    "concise",
    "produce",
)
_ENGLISH = "eng_Latn"


@dataclass(frozen=True)
class LanguagePack:
    """One row: how a language writes the frame of a question, and how its numbers and words look.

    Attributes:
        code: The language, "nya_Latn".
        words: The words of `WORDS` in it; a missing one is the English one.
        letters: Labels of choices, "A B C D" or what the language uses.
        digits: Its ten digits from 0 to 9, "0123456789" where it has none of its own.
        decimal: Its decimal mark.
        groups: Characters that part thousands; a no-break space stands for every kind of blank.
        articles: Words that a comparison of short answers leaves out, in lower case; one that ends in "-" or
            an apostrophe stands before its word without a blank ("ال-", "l'"). Articles that also count
            ("un", "ein") are not among them: in an answer they may be the number.
        unspaced: Whether words stand without blanks between them.
        direction: "ltr" or "rtl".
        borrowed: Which of `WORDS` are English ones because the row has none.
    """

    code: str
    words: Mapping[str, str]
    letters: tuple[str, ...]
    digits: str
    decimal: str
    groups: str
    articles: tuple[str, ...]
    unspaced: bool
    direction: str
    borrowed: tuple[str, ...] = ()

    @classmethod
    def of(cls, language: str) -> LanguagePack:
        """The pack of a language; without a row of its own, the English words under its code.

        Raises:
            ConfigError: No such language.
        """
        code = Language.parse(language).code
        rows = _rows()
        found = rows.get(code) or next((p for c, p in rows.items() if c[:3] == code[:3]), None)
        if found:
            return replace(found, code=code)
        english = rows[_ENGLISH]
        return replace(english, code=code, articles=(), borrowed=WORDS)

    def __getitem__(self, word: str) -> str:
        return self.words[word]

    def label(self) -> str:
        """What a signature says of it: its code, and how many of its words are borrowed."""
        return f"{self.code}+{len(self.borrowed)} English words" if self.borrowed else self.code


@cache
def _rows() -> Mapping[str, LanguagePack]:
    path = Path(__file__).with_name("packs.tsv")
    with path.open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    english = next(line for line in lines if line["code"] == _ENGLISH)
    return {line["code"]: _pack(line, english, f"{path.name}:{n}") for n, line in enumerate(lines, 2)}


def _pack(line: Mapping[str, str], english: Mapping[str, str], where: str) -> LanguagePack:
    if len(line["digits"]) != 10:
        raise DataError(f"{where}: {len(line['digits'])} digits; expected ten, from 0 to 9")
    return LanguagePack(
        code=line["code"],
        words={word: line[word] or english[word] for word in WORDS},
        letters=tuple((line["letters"] or english["letters"]).split()),
        digits=line["digits"],
        decimal=line["decimal"],
        groups=line["groups"],
        articles=tuple(line["articles"].split()),
        unspaced=line["unspaced"] == "yes",
        direction=line["direction"],
        borrowed=tuple(word for word in WORDS if not line[word]),
    )
