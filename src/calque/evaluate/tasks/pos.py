"""Parts of speech: the universal tag of every word.

Files of two columns (MasakhaPOS) or CoNLL-U (Universal Dependencies). Scores: correct/words is the usual
accuracy; macro_f1 weighs rare tags like frequent ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from calque.errors import DataError
from calque.evaluate import spans, tagging
from calque.evaluate.benchmark import Answer, Benchmark, Item, Prompt, Row
from calque.evaluate.pack import LanguagePack

TAGS = (
    "ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM",
    "PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB", "X",
)  # fmt: skip
_NONE = "_"


def _item(row: Row, language: str, split: str) -> Item:
    words, tags = tagging.words_and_tags(row)
    if unknown := [tag for tag in tags if tag not in TAGS]:
        raise DataError(
            f"{row.get('where', 'record')}: '{unknown[0]}' is no universal tag; they are {' '.join(TAGS)}"
        )
    return Item(tagging.name(row), language, {"words": words}, tuple(tags))


def _prompt(item: Item, pack: LanguagePack, shots: Sequence[Item]) -> Prompt:
    return tagging.prompt(item, pack, shots, TAGS)


def _score(item: Item, answer: Answer, pack: LanguagePack) -> Mapping[str, float]:
    told = tagging.tags_of(item, answer, TAGS, _NONE)
    found = spans.word_counts(item.gold, told.tags)
    found.pop(f"fp.{_NONE}", None)  # a word without a tag is missed, and no class of its own
    return {**found, "unparsed": float(told.unparsed)}


def _row(number: int, text: str) -> Row:
    pairs = [part.rpartition("/") for part in text.split()]
    return {"id": str(number), "words": [word for word, _, _ in pairs], "tags": [tag for _, _, tag in pairs]}


def _rows(*texts: str) -> tuple[Row, ...]:
    return tuple(_row(number, text) for number, text in enumerate(texts, 1))


BENCHMARK = Benchmark(
    name="pos",
    paper="Dione et al. 2023, arXiv:2305.13989 (MasakhaPOS); de Marneffe et al. 2021 (UD)",
    licence="MIT (MasakhaPOS); by treebank (Universal Dependencies)",
    revision=1,
    languages=(),
    form="tags",
    rows=tagging.rows,
    item=_item,
    prompt=_prompt,
    score=_score,
    measures=("correct/words", "macro_f1"),
    shots=3,
    sample={
        "eng_Latn": _rows(
            "The/DET child/NOUN sees/VERB a/DET bird/NOUN ./PUNCT",
            "Anna/PROPN and/CCONJ Ben/PROPN go/VERB home/ADV ./PUNCT",
            "Three/NUM dogs/NOUN slept/VERB in/ADP the/DET small/ADJ house/NOUN ./PUNCT",
            "She/PRON will/AUX read/VERB it/PRON slowly/ADV ./PUNCT",
        ),
        "nya_Latn": _rows(
            "Mwana/NOUN akuona/VERB mbalame/NOUN ./PUNCT",
            "Anna/PROPN ndi/CCONJ Ben/PROPN akupita/VERB kunyumba/NOUN ./PUNCT",
            "Agalu/NOUN atatu/NUM anagona/VERB m'nyumba/NOUN ./PUNCT",
            "Iye/PRON adzawerenga/VERB buku/NOUN pang'onopang'ono/ADV ./PUNCT",
        ),
    },
)
