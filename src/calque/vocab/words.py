"""Whole words as tokens: the additions to a vocabulary that leave every other word as it was.

A BPE tokenizer with `ignore_merges` writes a word that is in the vocabulary as one token and cuts every other
word by its merges. Adding whole words therefore changes nothing for names, numbers, loan words and other
languages: they are cut as the old tokenizer cuts them, into pieces the model knows. Learnt fragments do not
have this property; they take the known pieces of words that the text never had.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from calque.vocab.tokens import byte_alphabet

_BYTES = byte_alphabet()
_LETTERS = {byte: letter for letter, byte in _BYTES.items()}


def whole_words(cut: Mapping[tuple[str, ...], float], limit: int | None, min_count: float) -> list[str]:
    """The words that save most tokens: by count * (pieces - 1), the best first.

    Args:
        cut: Count of each word, given as the pieces it is cut into now.
        limit: Words to take at most; None: all that are frequent enough.
        min_count: A rarer word is not taken.
    """
    saved = {
        "".join(pieces): count * (len(pieces) - 1)
        for pieces, count in cut.items()
        if len(pieces) > 1 and count >= min_count and _is_word("".join(pieces))
    }
    ranked = sorted(saved, key=lambda word: (-saved[word], word))
    return ranked if limit is None else ranked[:limit]


def with_variants(words: Mapping[str, int], share: float) -> Counter[str]:
    """Count a word's other spellings too, as expected in other text: capitalised, and without the blank.

    A word " moyo" counts `share` for "Moyo" (a line's beginning), and a fifth of that for " Moyo" and
    "moyo"; a capitalised word counts `share` for its lower-case form after a blank.

    Args:
        words: Count of each pre-token, in byte letters.
        share: 0 changes nothing.
    """
    counts: Counter[str] = Counter(words)
    if not share:
        return counts
    for spelt, count in words.items():
        word = _text(spelt)
        bare = word.lstrip(" ")
        if not bare or not bare[0].isalpha():
            continue
        if word[0] == " " and bare[0].islower():
            capital = bare[0].upper() + bare[1:]
            for form, part in ((capital, share), (" " + capital, share / 5), (bare, share / 5)):
                counts[_spell(form)] += count * part  # pyright: ignore[reportArgumentType]
        elif bare[0].isupper() and len(bare) > 1:
            lower = " " + bare[0].lower() + bare[1:]
            counts[_spell(lower)] += count * share  # pyright: ignore[reportArgumentType]
    return counts


def _is_word(spelt: str) -> bool:
    word = _text(spelt)
    return "\ufffd" not in word and any(letter.isalpha() for letter in word)


def _text(spelt: str) -> str:
    return bytes(_BYTES[letter] for letter in spelt).decode("utf-8", "replace")


def _spell(text: str) -> str:
    return "".join(_LETTERS[byte] for byte in text.encode())
