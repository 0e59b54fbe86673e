"""Labels of moderation read from answers: three values for each category, refusals told apart from errors."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from calque.evaluate.calls import json_in

CLASSES = ("0", "1", "2")  # not concerning, the author, somebody else
# What a refusal says, by language, in lower case.
_REFUSALS: Mapping[str, tuple[str, ...]] = {
    "eng": ("i can't", "i cannot", "i can not", "i'm sorry", "i am sorry", "i'm unable", "i am unable",
            "i won't", "as an ai"),
    "zho": ("抱歉", "对不起", "很遗憾", "我不能", "我无法", "無法"),
    "jpn": ("申し訳", "すみません", "ごめんなさい", "できません", "お答えでき"),
    "nya": ("pepani", "sindingathe"),
}  # fmt: skip


class Told(NamedTuple):
    """Value by category, None where none was read; and whether the answer refuses."""

    values: Mapping[str, str | None]
    refused: bool


def read(text: str, categories: Sequence[str], value: Any = None) -> Told:
    """The value of each category.

    Read are a JSON object, "CATEGORY: digit" in any order, or as many digits as there are categories; digits
    of any script and width. The first valid one of each category counts. An answer without any is a refusal
    where it says so.

    Args:
        text: The answer.
        categories: Their names.
        value: A mapping of categories to values, where a head or a file gives one.
    """
    given = value if isinstance(value, Mapping) and set(value) & set(categories) else json_in(text)
    plain = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    plain = unicodedata.normalize("NFKC", plain)
    found: dict[str, str | None] = dict.fromkeys(categories)
    for category in categories:
        if isinstance(given, Mapping):
            found[category] = _value(given.get(category))
        else:
            named = re.search(
                rf"(?<!\w){re.escape(category)}(?!\w)\W{{0,6}}([0-2])(?!\d)", plain, re.IGNORECASE
            )
            found[category] = named.group(1) if named else None
    if not any(found.values()) and not isinstance(given, Mapping):
        digits = re.findall(r"(?<![\w.,])[0-2](?![\w]|[.,]\d)", plain)
        if len(digits) >= len(categories):
            found = dict(zip(categories, digits, strict=False))
    nothing = not any(found.values())
    return Told(found, nothing and refuses(text))


def _value(given: Any) -> str | None:
    text = str(given).strip() if isinstance(given, int | str) and not isinstance(given, bool) else ""
    text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    return text if text in CLASSES else None


def refuses(text: str) -> bool:
    """Whether an answer says that it will not or can not answer, in one of the languages listed."""
    plain = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    return any(phrase in plain for phrases in _REFUSALS.values() for phrase in phrases)
