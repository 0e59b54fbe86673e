"""Right answers written as people write them, scored by a widely used harness's rule for MGSM and by ours.

    python benchmarks/digits.py mgsm/mgsm_en.tsv

The gold numbers of MGSM are written in each language's digits and marks in five forms, so that every answer
is right; a sixth form is wrong by a factor of ten. The rule is that of lm-eval's filter flexible-extract with
exact match without punctuation. Prints per cent (rule -> ours) and writes results/digits.json. No model runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from calque.disk import write_json
from calque.evaluate.benchmark import Answer, Item, benchmark
from calque.evaluate.pack import LanguagePack
from calque.language import Language
from calque.machine import versions

LANGUAGES = ("eng", "deu", "fra", "rus", "swh", "ben", "tel", "tha", "arb", "hin", "pes", "mya")
FORMS = ("ascii", "native", "grouped", "decimal", "sentence", "tenfold")
WRONG = "tenfold"
MGSM = benchmark("mgsm")
RESULTS = Path(__file__).parent / "results"


def written(form: str, value: int, pack: LanguagePack) -> str:
    """An answer in one of the forms."""
    native = str.maketrans("0123456789", pack.digits)
    grouped = f"{value:,}".replace(",", pack.groups[0])
    if form == "ascii":
        return str(value)
    if form == "native":
        return str(value).translate(native)
    if form == "grouped":
        return grouped.translate(native)
    if form == "decimal":
        return f"{value}{pack.decimal}00".translate(native)
    if form == WRONG:  # 1.8 for 18
        return f"{value // 10}{pack.decimal}{value % 10}".translate(native)
    return f"{pack['step_answer']} {grouped}.".translate(native)


def rates(language: str, form: str, golds: list[Item]) -> dict[str, float | str]:
    """Per cent of the answers in one form that each rule takes for right."""
    pack = LanguagePack.of(language)
    taken = [item for item in golds if form != WRONG or int(item.gold) % 10]
    texts = [written(form, int(item.gold), pack) for item in taken]
    asked = [Item(item.id, language, item.fields, item.gold) for item in taken]
    scores = [MGSM.score(item, Answer(text), pack) for item, text in zip(asked, texts, strict=True)]
    metrics = {"ours": "correct", "published": "correct/published"}
    found = {name: round(100 * sum(s[m] for s in scores) / len(scores), 1) for name, m in metrics.items()}
    return {**found, "answers": len(scores), "example": texts[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("golds", type=Path, help="mgsm_en.tsv as published")
    rows = MGSM.rows(parser.parse_args().golds, "eng_Latn", "test")
    golds = [MGSM.item(row, "eng_Latn", "test") for row in rows]
    table: dict[str, dict[str, dict[str, float | str]]] = {}
    print(f"{'':12}" + "".join(f"{form:>17}" for form in FORMS))
    for code in LANGUAGES:
        language = Language.parse(code)
        table[language.code] = found = {form: rates(language.code, form, golds) for form in FORMS}
        cells = [f"{cell['published']:>8} ->{cell['ours']:>6}" for cell in found.values()]
        print(f"{language.name:12.12}" + "".join(f"{cell:>17}" for cell in cells))
    write_json(RESULTS / "digits.json", {"scores": table, "wrong_form": WRONG, "versions": versions()})


if __name__ == "__main__":
    main()
