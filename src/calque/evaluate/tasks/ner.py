"""Names: spans of words with a type, from tags.

Files in CoNLL columns, the tag last (CoNLL 2002/2003, MasakhaNER). A span counts where words and type are
right (f1); partial.f1 counts spans of the right type that share a word; token scores are kept too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from calque.evaluate import spans, tagging
from calque.evaluate.benchmark import Answer, Benchmark, Item, Prompt, Row
from calque.evaluate.pack import LanguagePack

LABELS = ("PER", "ORG", "LOC", "DATE", "MISC")


def _item(row: Row, language: str, split: str) -> Item:
    words, tags = tagging.words_and_tags(row)
    read = spans.from_tags(tags, rule="repair", where=str(row.get("where", "record")))
    return Item(tagging.name(row), language, {"words": words}, tuple(spans.to_tags(read.spans, len(words))))


def _names(items: Sequence[Item]) -> list[str]:
    """The tags that are used, or the usual ones."""
    used = {tag.partition("-")[2] for item in items for tag in item.gold} - {""}
    return ["O", *(f"{mark}-{label}" for label in sorted({*LABELS, *used}) for mark in "BI")]


def _prompt(item: Item, pack: LanguagePack, shots: Sequence[Item]) -> Prompt:
    return tagging.prompt(item, pack, shots, _names(shots))


def _score(item: Item, answer: Answer, pack: LanguagePack) -> Mapping[str, float]:
    told = tagging.tags_of(item, answer, _names([item]), "O")
    gold = spans.from_tags(item.gold).spans
    repaired = spans.from_tags(told.tags, where=f"item {item.id}")
    strict = spans.from_tags(told.tags, rule="drop").spans
    labels = [[tag.partition("-")[2] or "O" for tag in row] for row in (item.gold, told.tags)]
    token = spans.word_counts(labels[0], labels[1])
    return {
        **spans.counts(gold, repaired.spans, each=True),
        **spans.counts(gold, strict, prefix="strict."),
        **spans.partial_counts(gold, repaired.spans),
        "correct": token["correct"],
        "words": token["words"],
        "illegal": float(repaired.illegal),
        "unparsed": float(told.unparsed),
    }


def _row(number: int, text: str) -> Row:
    pairs = [part.partition("/") for part in text.split()]
    return {"id": str(number), "words": [w for w, _, _ in pairs], "tags": [tag or "O" for _, _, tag in pairs]}


def _rows(*texts: str) -> tuple[Row, ...]:
    return tuple(_row(number, text) for number, text in enumerate(texts, 1))


BENCHMARK = Benchmark(
    name="ner",
    paper="Adelani et al. 2022, arXiv:2210.12391 (MasakhaNER 2.0); Tjong Kim Sang & De Meulder 2003 (CoNLL)",
    licence="by data set; MasakhaNER 2.0: CC-BY-NC-4.0",
    revision=1,
    languages=(),
    form="tags",
    rows=tagging.rows,
    item=_item,
    prompt=_prompt,
    score=_score,
    measures=("f1", "macro_f1", "correct/words"),
    shots=3,
    sample={
        "eng_Latn": _rows(
            "Anna/B-PER Banda/I-PER lives/ in/ Zomba/B-LOC ./",
            "On/ Monday/B-DATE the/ Red/B-ORG Cross/I-ORG came/ ./",
            "The/ dog/ slept/ ./",
            "Ben/B-PER left/ New/B-LOC York/I-LOC in/ May/B-DATE ./",
        ),
        "nya_Latn": _rows(
            "Anna/B-PER Banda/I-PER amakhala/ ku/ Zomba/B-LOC ./",
            "Lolemba/B-DATE Red/B-ORG Cross/I-ORG inabwera/ ./",
            "Galu/ anagona/ ./",
            "Ben/B-PER anachoka/ ku/ New/B-LOC York/I-LOC mu/ Meyi/B-DATE ./",
        ),
    },
)
