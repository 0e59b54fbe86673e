"""Numbers as people write them: any Unicode digits, a language's decimal and group marks, signs, fractions.

One string can be read two ways: "5.600" is five thousand six hundred in German and a little more than five
and a half in English. `readings` gives the language's own reading first and the other one after it.
"""

from __future__ import annotations

import unicodedata
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from typing import Literal

import regex

from calque.evaluate.pack import LanguagePack

Which = Literal["first", "last"]

_ALWAYS_GROUP, _ALWAYS_DECIMAL = "٬'\u00a0", "٫"
_MARKS = "." + "," + _ALWAYS_DECIMAL + "٬'"
_MINUS = regex.compile("[\u2212\u2013\ufe63\uff0d](?=\\p{Sc}?\\d)")
_GROUPED = regex.compile(r"[1-9]\d{0,2}(?:\D\d{2,3})*\D\d{3}")
_VULGAR = regex.compile(r"\p{No}")


def ascii_digits(text: str) -> str:
    """The text with every decimal digit of Unicode as one of 0 to 9."""
    return "".join(ch if ch.isascii() or not ch.isdecimal() else str(unicodedata.decimal(ch)) for ch in text)


def number(text: str, pack: LanguagePack, which: Which = "last") -> Fraction | None:
    """The first or last number of a text as the language writes numbers; None where there is none.

    "৫,৬০০" is 5600, "٣٫١٤" is 157/50, "6½" and "6 1/2" are 13/2, "-$5" is -5; a percent sign is a unit and
    leaves the number as it is.
    """
    found = readings(text, pack, which)
    return found[0] if found else None


def readings(text: str, pack: LanguagePack, which: Which = "last") -> tuple[Fraction, ...]:
    """What the first or last number of a text may mean, the language's own reading first; () without one."""
    found = _all(text, pack)
    if which == "first":
        return next(found, ())
    return next(iter(deque(found, maxlen=1)), ())


def plain(body: str, pack: LanguagePack) -> str:
    """A run of digits and marks as its language means it: groups joined, the decimal mark a point.

    What is no number ("12.05.2020") comes apart into its parts.
    """
    first = next(iter(_interpreted(body, pack)), None)
    return " ".join(_parts(body)) if first is None else first


@cache
def run_of_digits(blanks: bool) -> regex.Pattern[str]:
    """Digits with single marks between them; with `blanks`, a blank may part groups of three."""
    between = rf"[{_MARKS}]\d+" + (r"|\u0020(?=\d{3}(?!\d))\d{3}" if blanks else "")
    return regex.compile(rf"\d+(?:{between})*")


def parted_by_blanks(pack: LanguagePack) -> bool:
    """Whether the language parts thousands by a blank."""
    return "\u00a0" in pack.groups


def _all(text: str, pack: LanguagePack) -> Iterator[tuple[Fraction, ...]]:
    """The readings of every number of a text, in order."""
    text = _prepared(text)
    body = run_of_digits(parted_by_blanks(pack)).pattern
    pattern = (
        rf"(?P<sign>(?<![\w.,])-\p{{Sc}}?)?(?:(?P<whole>(?<!\w)\d+)\s+(?=\d+/))?"
        rf"(?P<body>(?<![\w.])\.\d+|{body})(?:/(?P<below>\d+)(?![/\d]))?"
    )
    for match in regex.finditer(pattern, text):
        sign = -1 if match["sign"] else 1
        below = int(match["below"] or 1)
        slashed = match.start("body") and text[match.start("body") - 1] == "/"
        if match["below"] and below and not slashed and match["body"].isdigit():
            yield (sign * (int(match["whole"] or 0) + Fraction(int(match["body"]), below)),)
            continue
        if match["whole"]:
            yield (sign * Fraction(match["whole"]),)
        yield from _numbers(match["body"], pack, sign)
        if match["below"]:
            yield (Fraction(match["below"]),)


def _numbers(body: str, pack: LanguagePack, sign: int) -> Iterator[tuple[Fraction, ...]]:
    meant = _interpreted(body, pack)
    if meant:
        yield tuple(dict.fromkeys(sign * Fraction(one) for one in meant))
    else:
        yield from ((Fraction(part),) for part in _parts(body))


def _prepared(text: str) -> str:
    """One form for all digits, blanks, minus signs and fractions."""
    text = _VULGAR.sub(_fraction, text)
    text = _MINUS.sub("-", ascii_digits(unicodedata.normalize("NFKC", text)))
    return text.replace("’", "'").replace("\u2044", "/")


def _fraction(match: regex.Match[str]) -> str:
    """ "½" as " 1/2"; what else is written small or high ("m²", "①") is no number of its own."""
    spelled = unicodedata.decomposition(match[0])
    return " " + unicodedata.normalize("NFKC", match[0]) if spelled.startswith("<fraction>") else " "


def _parts(body: str) -> list[str]:
    return regex.findall(r"\d+", body)


def _interpreted(body: str, pack: LanguagePack) -> list[str]:
    """The ways to read a run of digits and marks, as "1234.5", the likeliest first; [] if it is no number."""
    body = body.replace(" ", "\u00a0")
    marks = [ch for ch in body if not ch.isdigit()]
    if not marks:
        return [body]
    joined = "".join(_parts(body))
    if len(set(marks)) == 1:
        return _one_mark(body, marks, joined, pack)
    last = marks[-1]
    whole, _, rest = body.rpartition(last)
    if marks.count(last) > 1 or len(set(marks)) > 2 or not _GROUPED.fullmatch(whole):
        return []
    return ["".join(_parts(whole)) + "." + rest]


def _one_mark(body: str, marks: list[str], joined: str, pack: LanguagePack) -> list[str]:
    mark = marks[0]
    as_group = [joined] if _GROUPED.fullmatch(body) and mark not in _ALWAYS_DECIMAL else []
    as_decimal = []
    if len(marks) == 1 and mark not in _ALWAYS_GROUP:
        whole, _, rest = body.partition(mark)
        as_decimal = [f"{whole or 0}.{rest}"]
    return as_group + as_decimal if mark in pack.groups else as_decimal + as_group
