"""Open information extraction: tuples of subject, relation and objects from a sentence.

Files: Re-OIE2016's JSON ({sentence: [{arg0, pred, arg1, ...}]}), CaRB's lines (sentence, relation, arguments
divided by tabs), BenchIE's text (facts in all their wordings). Tuples are scored by words (lexical, carb),
facts exactly (fact).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from calque.evaluate import extraction, extraction_files
from calque.evaluate.benchmark import Answer, Benchmark, Item, Prompt, Row
from calque.evaluate.files import needed
from calque.evaluate.pack import LanguagePack


def _item(row: Row, language: str, split: str) -> Item:
    where = str(row.get("where", "record"))
    kind = "facts" if "facts" in row else "tuples"
    listed = needed({**row, "where": where}, kind, list)
    facts = listed if kind == "facts" else [listed]
    read = tuple(tuple(extraction.of_row(one, where) for one in fact) for fact in facts)
    gold = read if kind == "facts" else read[0]
    fields = {"sentence": needed({**row, "where": where}, "sentence", str), "kind": kind}
    return Item(str(row.get("id") or where.rpartition(":")[2]), language, fields, gold)


def _prompt(item: Item, pack: LanguagePack, shots: Sequence[Item]) -> Prompt:
    """One tuple a line: subject, relation, objects, divided by semicolons."""
    told = [f"{_asked(shot, pack)}\n{_shown(shot)}" for shot in shots]
    return Prompt("\n\n".join([*told, _asked(item, pack)]), stop=("\n\n",), max_tokens=256)


def _asked(item: Item, pack: LanguagePack) -> str:
    return f"{pack['context']} {item.fields['sentence']}\n{pack['answer']}"


def _shown(item: Item) -> str:
    gold = item.gold if item.fields["kind"] == "tuples" else [fact[0] for fact in item.gold]
    return "\n".join("; ".join((t.arguments[0], t.relation, *t.arguments[1:])) for t in gold)


def _score(item: Item, answer: Answer, pack: LanguagePack) -> Mapping[str, float]:
    if isinstance(answer.value, list | tuple):
        made, unparsed = tuple(extraction.of_row(row, f"item {item.id}") for row in answer.value), 0
    else:
        made, unparsed = extraction.parse(answer.text)
    if item.fields["kind"] == "facts":
        return {**extraction.fact_counts(item.gold, made), "unparsed": float(unparsed)}
    english = item.language.startswith("eng")
    return {
        **extraction.lexical_counts(item.gold, made),
        **extraction.carb_counts(item.gold, made, english=english),
        "unparsed": float(unparsed),
    }


def _sample(*told: str) -> tuple[Row, ...]:
    """Each a tuple divided by semicolons, which read one after the other is its sentence."""
    return tuple(
        {"id": str(n), "sentence": one.replace(";", "") + " .", "tuples": [one.split("; ")]}
        for n, one in enumerate(told, 1)
    )


BENCHMARK = Benchmark(
    name="openie",
    paper="Bhardwaj et al. 2019 (CaRB); Ro et al. 2020, arXiv:2009.08128; arXiv:2109.06850 (BenchIE)",
    licence="by data set",
    revision=1,
    languages=(),
    form="text",
    rows=extraction_files.rows,
    item=_item,
    prompt=_prompt,
    score=_score,
    measures=("lexical.f1", "carb.f1", "fact.f1"),
    shots=2,
    sample={
        "eng_Latn": _sample("Anna; was born in; Zomba", "The dog; chased; a cat", "Ben; wrote; two books"),
        "nya_Latn": _sample(
            "Anna; anabadwira; ku Zomba", "Galu; anathamangitsa; mphaka", "Ben; analemba; mabuku awiri"
        ),
    },
)
