"""XCOPA: the cause or the effect of what is said, of two.

The premise, a word for "because" or "so", and the sentence that is likelier after it. Chance is 0.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from calque.errors import DataError
from calque.evaluate.asking import chosen, gold_choice, lettered_fields
from calque.evaluate.benchmark import Answer, Benchmark, Item, Prompt, Row
from calque.evaluate.files import locate, needed, records
from calque.evaluate.pack import LanguagePack
from calque.language import Language

_CODES = ("et", "ht", "id", "it", "qu", "sw", "ta", "th", "tr", "vi", "zh")
_FILES = {"validation": "val", "val": "val", "test": "test"}
_ENDS = ".。!！?？।።؟۔"


def _rows(path: Path, language: str, split: str) -> Iterator[Row]:
    if split not in _FILES:
        raise DataError(f"{path}: XCOPA has the parts validation and test; asked for '{split}'")
    name = f"{_FILES[split]}.{Language.parse(language).short}.jsonl"
    return records(locate(path, name))


def _item(row: Row, language: str, split: str) -> Item:
    asks = needed(row, "question", str)
    if asks not in ("cause", "effect"):
        raise DataError(f"{row.get('where', 'record')}: question is '{asks}', expected cause or effect")
    fields = {
        "premise": needed(row, "premise", str).strip(),
        "choices": lettered_fields(row, ("choice1", "choice2")),
        "asks": asks,
    }
    return Item(str(needed(row, "idx", int)), language, fields, gold_choice(row, "label", ("0", "1")))


def _prompt(item: Item, pack: LanguagePack, shots: Sequence[Item]) -> Prompt:
    """Premise without its end mark, connector, choice with a small first letter."""
    blank = "" if pack.unspaced else " "

    def ask(one: Item) -> str:
        connector = pack["because" if one.fields["asks"] == "cause" else "so"]
        return one.fields["premise"].rstrip(_ENDS + " ") + blank + connector

    def end(text: str) -> str:
        return blank + text[:1].lower() + text[1:]

    told = [ask(shot) + end(shot.fields["choices"][shot.gold]) for shot in shots]
    return Prompt("\n".join([*told, ask(item)]), tuple(end(choice) for choice in item.fields["choices"]))


def _score(item: Item, answer: Answer, pack: LanguagePack) -> Mapping[str, float]:
    index = chosen(item, answer, pack)
    return {"correct": float(index == item.gold), "unparsed": float(index is None)}


def _row(idx: int, premise: str, question: str, choice1: str, choice2: str, label: int) -> Row:
    said = {"premise": premise, "choice1": choice1, "choice2": choice2}
    return {**said, "question": question, "label": label, "idx": idx, "changed": False}


BENCHMARK = Benchmark(
    name="xcopa",
    paper="Ponti et al. 2020, 2020.emnlp-main.185",
    licence="CC-BY-4.0",
    revision=1,
    languages=tuple(Language.parse(code).code for code in _CODES),
    form="choice",
    rows=_rows,
    item=_item,
    prompt=_prompt,
    score=_score,
    measures=("correct",),
    hub="cambridgeltl/xcopa",
    config=lambda language: Language.parse(language).short,
    sample={
        "swh_Latn": (
            _row(0, "Mtoto alianguka.", "cause", "Sakafu ilikuwa na maji.", "Jua lilichomoza.", 0),
            _row(1, "Mvua ilinyesha sana.", "effect", "Alisoma kitabu.", "Mto ulifurika.", 1),
        ),
        "ita_Latn": (
            _row(0, "Il bambino è caduto.", "cause", "Il pavimento era bagnato.", "Il sole è sorto.", 0),
            _row(1, "Ha piovuto molto.", "effect", "Lui ha letto un libro.", "Il fiume è straripato.", 1),
        ),
    },
)
