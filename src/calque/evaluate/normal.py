"""Short answers compared: as the authors of a benchmark do it, and as the language means it.

Two normalisers, never mixed: `published` is what a benchmark's own scorer does (English articles taken out
of every language, listed punctuation only, digits of other scripts left as they are); `intended` is NFKC,
case folding by the language's rule, punctuation by Unicode category, the articles of that language alone,
all digits as 0 to 9, and numbers written the language's way as one number. No text becomes nothing under
`intended`: an article or a mark that is the whole answer stays.

Paper: Rajpurkar et al. 2016, D16-1264, for exact match and token F1; Hupkes and Bogoychev 2025,
arXiv:2504.10356, for MultiLoKo's normaliser; Lewis et al. 2020, 2020.acl-main.653, for the articles of the
context's language.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from functools import cache
from typing import Any

import regex

from calque.errors import MissingExtra
from calque.evaluate.numbers import ascii_digits, parted_by_blanks, plain, run_of_digits
from calque.evaluate.pack import LanguagePack

Normaliser = Callable[[str], str]

_ENGLISH_ARTICLES = re.compile(r"\b(a|an|the)\b")
# MultiLoKo's marks beside those of ASCII: quotes of Europe, inverted marks, full-width and half-width forms,
# East Asian brackets and quotes, dashes.
_WIDE = [chr(ord(mark) + 0xFEE0) for mark in string.punctuation if mark not in "!.?"]
_MARKS = frozenset(
    string.punctuation
    + "".join(_WIDE)
    + "„“«»¡¿《》！？｡。"
    + "｟｠｢｣､、〃「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿"
    + "–—‘’‛”‟…‧﹏"
)
_APOSTROPHES = regex.compile("[\u2018\u2019\u201b\u02bc\u02bb`\u00b4\uff07]")
_MINUS = regex.compile("(?<![\\w.,])[-\u2212\u2013](?=\\d)")
_DROPPED = regex.compile(r"['\".“”„‟«»]|(?!\u200c)\p{Cf}")  # "U.S.A." is "usa"
_PARTING = regex.compile(r"[\p{P}\p{Sc}]")  # "A-B" is "a b"
_LOOSE_BLANK = regex.compile(r"(?<!\d) | (?!\d)")
_WORD_OR_CLUSTER = regex.compile(r"-?\d[\d.]*|[\p{Latin}\p{Cyrillic}\p{Greek}]+|\X")
_POINT, _SIGN = "\ue000", "\ue001"  # private characters that stand for a decimal point and a minus sign


def published(text: str, marks: frozenset[str] = _MARKS) -> str:
    """MultiLoKo's form of an answer, in every language: lower case, no listed marks, no a, an, the.

    "A" and "the" become nothing, "3.14" and "3,14" become "314", digits of other scripts stay.
    """
    bare = "".join(ch for ch in text.lower() if ch not in marks)
    return " ".join(_ENGLISH_ARTICLES.sub(" ", bare).split())


def published_squad(text: str) -> str:
    """SQuAD's form: as `published`, with the marks of ASCII alone."""
    return published(text, frozenset(string.punctuation))


def intended(text: str, pack: LanguagePack) -> str:
    """The form of an answer that the language means; blank text alone gives ""."""
    text = _folded(text, pack)
    whole = " ".join(text.split())
    body = run_of_digits(parted_by_blanks(pack))
    text = body.sub(lambda match: plain(match[0], pack).replace(".", _POINT), text)
    text = _MINUS.sub(_SIGN, text)
    for article in pack.articles:
        if article.endswith("'"):
            text = regex.sub(rf"(?<!\w){article}(?=\w)", "", text)
    text = _PARTING.sub(" ", _DROPPED.sub("", text))
    words = text.replace(_POINT, ".").replace(_SIGN, "-").split()
    return " ".join(_without_articles(words, pack)) or whole


def tokens(text: str, pack: LanguagePack) -> list[str]:
    """The words of an answer's intended form; in a language without blanks its characters.

    There each grapheme cluster counts for one, and each number or run of Latin, Greek or Cyrillic letters.
    """
    words = intended(text, pack).split()
    if not pack.unspaced:
        return words
    return [part for word in words for part in _WORD_OR_CLUSTER.findall(word)]


def exact(prediction: str, golds: Sequence[str], pack: LanguagePack) -> float:
    """1.0 if the answer is one of the accepted ones in intended form, blanks beside letters aside."""
    mine = _key(prediction, pack)
    return float(bool(mine) and any(mine == _key(gold, pack) for gold in golds))


def token_f1(prediction: Sequence[str], golds: Sequence[Sequence[str]]) -> float:
    """Best harmonic mean of token precision and recall over the accepted answers; 0 for no token."""
    return max((_f1(prediction, gold) for gold in golds), default=0.0)


def short_answer(
    prediction: str, golds: Sequence[str], pack: LanguagePack, normaliser: Normaliser = published
) -> dict[str, float]:
    """Exact match and token F1, intended and published, and two soft scores of the published form.

    Args:
        prediction: What a model answered.
        golds: Accepted answers, at least one.
        pack: Of the language the answer should be in.
        normaliser: The authors' form of an answer.

    Returns:
        em, f1, em/published, f1/published, edit_similarity (best ratio of matching characters), chrf
        (0 to 1).
    """
    mine, theirs = normaliser(prediction), [normaliser(gold) for gold in golds]
    return {
        "em": exact(prediction, golds, pack),
        "f1": token_f1(tokens(prediction, pack), [tokens(gold, pack) for gold in golds]),
        "em/published": float(mine in theirs),
        "f1/published": token_f1(mine.split(), [gold.split() for gold in theirs]),
        "edit_similarity": edit_similarity(mine, theirs),
        "chrf": chrf(mine, theirs),
    }


def edit_similarity(prediction: str, golds: Sequence[str]) -> float:
    """Best ratio 2 M / T of matching characters M to all characters T over the accepted answers."""
    return max(SequenceMatcher(None, prediction, gold).ratio() for gold in golds)


def chrf(prediction: str, golds: Sequence[str]) -> float:
    """chrF of one answer against all accepted ones, from 0 to 1."""
    return _chrf().sentence_score(prediction, list(golds)).score / 100


def romanized_exact(prediction: str, golds: Sequence[str], pack: LanguagePack) -> float:
    """Exact match that accepts another script: both sides romanised by uroman, then compared as English.

    Raises:
        MissingExtra: uroman is not installed.
    """
    english = LanguagePack.of("eng_Latn")
    code = pack.code[:3]
    mine = _key(romanize(prediction, code), english)
    return float(bool(mine) and any(mine == _key(romanize(gold, code), english) for gold in golds))


def romanize(text: str, iso: str) -> str:
    """A text in Latin letters.

    Args:
        text: in any script.
        iso: ISO 639-3 code of its language, for the languages with rules of their own.

    Raises:
        MissingExtra: uroman is not installed.
    """
    return str(_uroman().romanize_string(text, lcode=iso))


def _key(text: str, pack: LanguagePack) -> str:
    """The intended form without the blanks that a writer may leave out: "12 km" is "12km"."""
    return _LOOSE_BLANK.sub("", intended(text, pack))


def _folded(text: str, pack: LanguagePack) -> str:
    """Compatible forms, case and digits made one; joiners that divide words become what they stand for."""
    text = unicodedata.normalize("NFKC", _APOSTROPHES.sub("'", text))
    if pack.code[:3] in ("tur", "azj", "aze"):  # dotted and dotless i are two letters
        text = text.replace("İ", "i").replace("I", "ı")
    text = unicodedata.normalize("NFKC", text.casefold())
    return ascii_digits(text).replace("\u200c", " " if pack.code.endswith("_Arab") else "")


def _without_articles(words: Sequence[str], pack: LanguagePack) -> list[str]:
    whole = {article.casefold() for article in pack.articles}
    kept = [word for word in words if word not in whole]
    for article in pack.articles:
        prefix = article.removesuffix("-")
        if prefix != article:
            kept = [
                word[len(prefix) :] if word.startswith(prefix) and len(word) >= len(prefix) + 2 else word
                for word in kept
            ]
    return kept or list(words)


def _f1(prediction: Sequence[str], gold: Sequence[str]) -> float:
    common = sum((Counter(prediction) & Counter(gold)).values())
    if not common:
        return 0.0
    precision, recall = common / len(prediction), common / len(gold)
    return 2 * precision * recall / (precision + recall)


@cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


@cache
def _uroman() -> Any:
    try:
        import uroman
    except ImportError:
        raise MissingExtra("uroman", "romanize", "A match across scripts") from None
    return uroman.Uroman()
