"""FLORES: sentences of encyclopaedic articles, translated between any two of 200 languages.

BLEU, chrF, chrF++ and TER of sums; "off_target/identified" is the share of answers in another language.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from calque.errors import DataError
from calque.evaluate import translating
from calque.evaluate.benchmark import Benchmark, Row
from calque.evaluate.files import locate, needed, records

_PARTS = {"test": "devtest", "devtest": "devtest", "validation": "dev", "dev": "dev"}
_OWN = {"kor_Kore": "kor_Hang"}  # its code where that is another


def _rows(path: Path, language: str, split: str) -> Iterator[Row]:
    """`devtest/eng_Latn.devtest` and the other side; articles are what the list beside them says."""
    asked, other = translating.source_of(language, split)
    if asked not in _PARTS:
        raise DataError(f"{path}: FLORES has the parts dev and devtest; asked for '{asked}'")
    part = _PARTS[asked]
    source, target = (locate(path, f"{_OWN.get(code, code)}.{part}") for code in (other, language))
    listed = sorted(path.rglob(f"metadata_{part}.tsv"))
    groups = [needed(row, "URL", str) for row in records(listed[0])] if listed else []
    return translating.parallel(source, target, groups)


_PAIRS = (
    ("The rain came late this year.", "Mvula inabwera mochedwa chaka chino."),
    ("Farmers plant maize in November.", "Alimi amabzala chimanga mu Novembala."),
    ("The lake is very deep.", "Nyanjayo ndi yakuya kwambiri."),
)
_PAARE = (
    ("The rain came late this year.", "Der Regen kam dieses Jahr spät."),
    ("Farmers plant maize in November.", "Die Bauern pflanzen im November Mais."),
    ("The lake is very deep.", "Der See ist sehr tief."),
)

BENCHMARK = Benchmark(
    name="flores",
    paper="NLLB Team 2022, arXiv:2207.04672",
    licence="CC-BY-SA-4.0",
    revision=1,
    languages=(),
    form="text",
    rows=_rows,
    item=translating.item,
    prompt=translating.prompt,
    score=translating.score,
    measures=("chrf++", "chrf", "bleu", "ter"),
    shots=2,
    sample={"nya_Latn": translating.sample(_PAIRS), "deu_Latn": translating.sample(_PAARE)},
)
