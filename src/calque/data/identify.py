"""Does a text look like the language it is said to be? Its script, and what py3langid takes it for."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import regex

from calque.errors import ConfigError
from calque.language import Language, distance

LINES = 400
"""Lines of a text that are looked at."""
_PIECE_LETTERS = 200
_ENOUGH_PIECES = 4
_LEAST, _LEAST_DENSE = 20, 8  # letters of one sentence that can be identified
_DENSE = frozenset(["Hans", "Hant", "Hani", "Jpan", "Kore", "Thai", "Khmr", "Laoo", "Mymr"])
# Languages this close (two written norms of one language, neighbours in one group) are often taken for
# each other; no warning is given for that.
_NEAR = 0.3
# For a language py3langid does not know, only a text of an unrelated language is called wrong.
_UNRELATED = 0.6
_WRITTEN_IN = {"Hans": "Han", "Hant": "Han", "Jpan": "Han Hira Kana", "Kore": "Hang Han", "Latg": "Latn"}


@dataclass
class Sample:
    """A fair sample of the lines of a text whose length is not known beforehand (reservoir)."""

    lines: list[str] = field(default_factory=list)
    seen: int = 0
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    def add(self, line: str) -> None:
        """Look at one more line."""
        self.seen += 1
        if len(self.lines) < LINES:
            self.lines.append(line)
        elif (place := self._random.randrange(self.seen)) < LINES:
            self.lines[place] = line


def identify(lines: Sequence[str], language: Language) -> dict[str, Any]:
    """Compare a sample of a text with the language it should be in.

    Args:
        lines: lines of the text, a few hundred at most.
        language: what it should be.

    Returns:
        letters, script_share (of the letters, in the script asked for), looks_like (language -> share of
        the pieces of text), and warning: a sentence, "" when the text looks right or nothing can be said
        (fewer than 800 letters, a language that py3langid does not know).
    """
    text = "\n".join(lines)
    letters = len(regex.findall(r"\p{L}", text))
    found: dict[str, Any] = {"language": language.code, "letters": letters, "warning": ""}
    if letters < _ENOUGH_PIECES * _PIECE_LETTERS:
        return found
    found["script_share"] = round(_in_script(text, language.script) / letters, 3)
    if found["script_share"] < 0.5:
        share = f"{100 * found['script_share']:.0f} %"
        found["warning"] = f"only {share} of the letters are in the script {language.script}"
        return found
    labels = Counter(_label(piece) for piece in _pieces(lines))
    total = sum(labels.values())
    found["looks_like"] = {label: round(n / total, 3) for label, n in labels.most_common(5)}
    top, count = labels.most_common(1)[0]
    if _wrong(labels, language) and count / total >= 0.5:
        found["warning"] = f"{100 * count / total:.0f} % of it looks like {top} ({Language.parse(top).name})"
    return found


def looks_like(text: str, language: Language) -> bool | None:
    """Whether one sentence may be in a language; None where it is too short to tell.

    Half of its letters must be in the language's script; then what py3langid takes it for must be the
    language or one close to it, or, for a language that py3langid does not know, no unrelated one.

    Args:
        text: a sentence or more; fewer than 20 letters (8 where no blanks part the words) tell nothing.
        language: what it should be.
    """
    letters = len(regex.findall(r"\p{L}", text))
    if letters < (_LEAST_DENSE if language.script in _DENSE else _LEAST):
        return None
    if _in_script(text, language.script) / letters < 0.5:
        return False
    return not _wrong(Counter([_label(text)]), language)


def _wrong(labels: Counter[str], language: Language) -> bool:
    """Whether the labels speak against the language."""
    total = sum(labels.values())
    known = language.iso in _known().values()
    limit = _NEAR if known else _UNRELATED
    fitting = sum(n for label, n in labels.items() if not label or _apart(label, language) <= limit)
    return fitting / total < (0.5 if known else 0.1)


def _apart(label: str, language: Language) -> float:
    """Distance without the script, which has been looked at already."""
    other = Language.parse(label)
    return distance(Language(f"{other.iso}_{language.script}"), language)


def _in_script(text: str, script: str) -> int:
    """Number of letters in a script."""
    names = _WRITTEN_IN.get(script, script).split()
    try:
        wanted = regex.compile("[" + "".join(rf"\p{{Script={name}}}" for name in names) + "]")
    except regex.error:  # a script newer than the library's Unicode tables: nothing can be said against it
        return len(regex.findall(r"\p{L}", text))
    return sum(1 for letter in regex.findall(r"\p{L}", text) if wanted.match(letter))


def _pieces(lines: Sequence[str]) -> list[str]:
    """Lines joined until a piece is long enough to be identified; a short rest is left out."""
    pieces, current, size = [], [], 0
    for line in lines:
        current.append(line)
        size += len(line)
        if size >= _PIECE_LETTERS:
            pieces.append(" ".join(current))
            current, size = [], 0
    return pieces


def _label(piece: str) -> str:
    """Code of the language a piece looks like; "" where it is none that `Language` knows."""
    import py3langid

    return _known().get(py3langid.classify(piece)[0], "")


@cache
def _known() -> dict[str, str]:
    """py3langid's labels -> ISO 639-3 codes."""
    from py3langid import langid

    langid.classify("a")  # loads the model
    codes: dict[str, str] = {}
    for label in langid.IDENTIFIER.labels:
        try:
            codes[label] = Language.parse(label).iso
        except ConfigError:  # a label that is no living language: "zxx", Ancient Hebrew, ...
            continue
    return codes
