"""Arguments of calls compared: texts in any spelling, numbers in any digits, possible values, types."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

# ISO 639-3 -> (letters in the standard romanisation, endings, words); letters of Russian habit beside them.
_ROMAN: Mapping[str, tuple[Mapping[str, str], Mapping[str, str], Mapping[str, str]]] = {
    "bul": ({"щ": "sht", "ъ": "a", "ь": "y"}, {"ия": "ia"}, {"българия": "bulgaria"}),
}
_CYRILLIC = (
    "аa бb вv гg дd еe жzh зz иi йy кk лl мm нn оo пp рr сs тt уu фf хh цts чch "
    "шsh щshch ъ ыy ь эe юyu яya ёyo"
)
LETTERS: Mapping[str, str] = {pair[0]: pair[1:] for pair in _CYRILLIC.split()}
_KINDS: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "float": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "tuple": (list,),
    "object": (dict,),
    "dict": (dict,),
    "null": (type(None),),
}


def fits(made: Any, expected: Any, language: str = "", possible: bool = False) -> bool:
    """Whether an argument is the expected one, or one of the possible ones."""
    if not possible or not isinstance(expected, list):
        return equal(expected, made, language)
    return any(_one_of(made, value, language) for value in expected if value != "" or made == "")


def _one_of(made: Any, value: Any, language: str) -> bool:
    """A possible value; an object there lists the possible values of each of its keys in turn."""
    if isinstance(value, dict) and isinstance(made, dict):
        nested = all(isinstance(part, list) for part in value.values())
        needed = {key for key, part in value.items() if not (nested and "" in part)}
        return needed <= set(made) <= set(value) and all(
            fits(part, value[key], language, nested) for key, part in made.items()
        )
    if isinstance(value, list) and isinstance(made, list):
        return len(value) == len(made) and all(map(lambda m, v: _one_of(m, v, language), made, value))
    return equal(value, made, language)


def equal(expected: Any, made: Any, language: str = "") -> bool:
    """Whether two arguments mean the same.

    Texts: in NFKC, in any case, without quotation marks around them and full stops after them, and in the
    language's script or in its romanisation. A number equals a text that is that number, in any digits.
    Truth values equal no number. Lists in order; objects by their keys.
    """
    if isinstance(expected, bool) or isinstance(made, bool) or expected is None or made is None:
        return type(expected) is type(made) and expected == made
    if isinstance(expected, str) and isinstance(made, str):
        return bool(_forms(expected, language) & _forms(made, language))
    if isinstance(expected, str) != isinstance(made, str):
        text, value = (expected, made) if isinstance(expected, str) else (made, expected)
        return isinstance(value, int | float) and number_of(text) == value
    if isinstance(expected, list) and isinstance(made, list):
        return len(expected) == len(made) and all(map(lambda e, m: equal(e, m, language), expected, made))
    if isinstance(expected, dict) and isinstance(made, dict):
        return set(expected) == set(made) and all(equal(expected[k], made[k], language) for k in expected)
    return expected == made


def number_of(text: str) -> int | float | None:
    """The number that a text is, in digits of any script; None for what is none."""
    text = text.strip().replace("٫", ".").replace("−", "-")
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return None


def _forms(text: str, language: str) -> frozenset[str]:
    """Everything that the text may be written as, in one spelling each."""
    plain = plain_text(unicodedata.normalize("NFKC", text))
    habits, endings, words = _ROMAN.get(language[:3], ({}, {}, {}))
    forms = {plain, unicodedata.normalize("NFKC", text).strip().lower()}
    if not any(word[:1] in "ъь" for word in plain.split()):  # no word begins with a sign that is not read
        forms.add(_written(plain, LETTERS))
    if habits:
        said = [words.get(word, word) for word in plain.split()]
        for old, new in endings.items():
            said = [w[: -len(old)] + new if w.endswith(old) else w for w in said]
        forms.add(_written(" ".join(said), {**LETTERS, **habits}))
    return frozenset(forms)


def _written(text: str, letters: Mapping[str, str]) -> str:
    return "".join(letters.get(letter, letter) for letter in text)


def plain_text(text: str) -> str:
    """Lower case, one blank at a time, no quotation marks around it and no marks after it."""
    text = re.sub(r"\s+", " ", text.strip()).lower()
    return re.sub(r"[.!?,:;]+$", "", text.strip("\"'")).strip().strip("\"'")


def mistyped(value: Any, schema: Any, place: str) -> str:
    """The first place where a value is not of its JSON schema's type; "" where there is none."""
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    kinds = kind if isinstance(kind, list) else [kind]
    if kind is None or not any(isinstance(k, str) and k in _KINDS for k in kinds):
        return ""
    good = {of for k in kinds for of in _KINDS.get(str(k), ())}
    if type(value) not in good:
        return f"{place}: {type(value).__name__} {value!r:.30}, expected {' or '.join(map(str, kinds))}"
    if isinstance(value, list):
        parts = [(part, schema.get("items", {}), f"{place}[{n}]") for n, part in enumerate(value)]
    else:
        inner, given = schema.get("properties", {}), value if isinstance(value, dict) else {}
        parts = [(part, inner.get(key, {}), f"{place}.{key}") for key, part in given.items()]
    return next(filter(None, (mistyped(*part) for part in parts)), "")
