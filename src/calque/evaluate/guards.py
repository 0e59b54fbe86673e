"""What every written answer is checked for, whatever its task: language, copying, emptiness, repetition.

A score alone does not tell a wrong answer from one in the wrong language, from the question said back, or
from nothing at all. These metrics stand beside the score of every item and are added up like it.
"""

from __future__ import annotations

from collections.abc import Mapping

from calque.data.identify import looks_like
from calque.evaluate.benchmark import Answer, Item
from calque.evaluate.documents import repetition
from calque.evaluate.normal import tokens
from calque.evaluate.pack import LanguagePack
from calque.language import Language

_GRAM = 4  # characters


def guards(
    item: Item,
    answer: Answer,
    pack: LanguagePack,
    source: str | None = None,
    truncated: bool | None = None,
) -> dict[str, float]:
    """The checks of one written answer.

    Args:
        item: What was asked. Its field "answer_language" names the language of the answer where that is not
            the item's own; its field "source" is the text that a copy would be of.
        answer: What was answered.
        pack: Words of the prompt; its language plays no part.
        source: The text that a copy would be of, in place of the item's.
        truncated: Whether the answer was cut by the limit of tokens; without it, what the answer's own value
            says, if anything.

    Returns:
        empty: 1 for no text. identified: 1 where there is enough text to tell its language; off_target: 1
        where that is not the one asked for ("off_target/identified" is the rate). repeated: share of
        pairs of neighbouring words that came before. With a source, copied: share of its character
        4-grams that the answer has; copied_exact: 1 for the source said back. truncated, where known.
    """
    expected = str(item.fields.get("answer_language") or item.language)
    right = looks_like(answer.text, Language.parse(expected))
    words = tokens(answer.text, LanguagePack.of(expected))
    found = {
        "empty": float(not answer.text.strip()),
        "identified": float(right is not None),
        "off_target": float(right is False),
        "repeated": repetition(words),
    }
    source = source or str(item.fields.get("source") or "")
    if source.strip():
        found["copied"] = copied(source, answer.text)
        found["copied_exact"] = float(_bare(source) == _bare(answer.text))
    if truncated is None and isinstance(answer.value, Mapping):
        truncated = answer.value.get("truncated")
    if truncated is not None:
        found["truncated"] = float(truncated)
    return found


def copied(source: str, answer: str) -> float:
    """Share of the source's character 4-grams, case and blanks aside, that stand in the answer too."""
    have, written = _grams(source), _grams(answer)
    return len(have & written) / len(have) if have else 0.0


def _bare(text: str) -> str:
    return "".join(text.casefold().split())


def _grams(text: str) -> set[str]:
    """Its character 4-grams; of a shorter text the whole."""
    bare = _bare(text)
    return {bare[place : place + _GRAM] for place in range(max(1, len(bare) - _GRAM + 1))} if bare else set()
