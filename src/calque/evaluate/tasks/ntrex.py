"""NTREX-128: news of 2019 translated from English into 128 languages by professionals.

Sentences of one article share its group. Meant for translation out of English.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from calque.data.read import lines
from calque.errors import DataError
from calque.evaluate import translating
from calque.evaluate.benchmark import Benchmark, Row
from calque.evaluate.files import locate
from calque.language import Language

# Its codes where they are those of a macrolanguage or a country.
_OWN = {
    "zho_Hans": "zho-CN", "zho_Hant": "zho-TW", "swh_Latn": "swa", "pes_Arab": "fas", "zsm_Latn": "msa",
    "lvs_Latn": "lav", "khk_Cyrl": "mon", "npi_Deva": "nep", "azj_Latn": "aze-Latn", "uzn_Latn": "uzb",
    "als_Latn": "sqi", "plt_Latn": "mlg", "tgl_Latn": "fil", "gaz_Latn": "orm", "pbt_Arab": "pus",
    "ckb_Arab": "ckb-Arab", "srp_Cyrl": "srp-Cyrl", "srp_Latn": "srp-Latn", "eng_Latn": "eng",
}  # fmt: skip


def _rows(path: Path, language: str, split: str) -> Iterator[Row]:
    """`newstest2019-src.eng.txt` and `newstest2019-ref.LANGUAGE.txt`; articles from DOCUMENT_IDS.tsv."""
    part, other = translating.source_of(language, split)
    if part != "test":
        raise DataError(f"{path}: NTREX has one part, test; asked for '{part}'")
    listed = sorted(path.rglob("DOCUMENT_IDS.tsv"))
    groups = [line.split("\t")[0] for _, line in lines(listed[0])] if listed else []
    return translating.parallel(_side(path, other), _side(path, language), groups)


def _side(path: Path, code: str) -> Path:
    name = _OWN.get(code, Language.parse(code).iso)
    if name == "eng":
        return locate(path, "newstest2019-src.eng.txt")
    return locate(path, f"newstest2019-ref.{name}.txt", f"newstest2019-ref.{name}-*.txt")


_PAIRS = (
    ("The council meets on Monday.", "Der Rat tagt am Montag."),
    ("Two bridges were closed after the flood.", "Zwei Brücken wurden nach dem Hochwasser gesperrt."),
    ("Nobody was hurt.", "Niemand wurde verletzt."),
)
_PARES = (
    ("The council meets on Monday.", "El consejo se reúne el lunes."),
    ("Two bridges were closed after the flood.", "Dos puentes se cerraron tras la inundación."),
    ("Nobody was hurt.", "Nadie resultó herido."),
)

BENCHMARK = Benchmark(
    name="ntrex",
    paper="Federmann, Kocmi and Xin 2022, 2022.sumeval-1.4",
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
    sample={"deu_Latn": translating.sample(_PAIRS), "spa_Latn": translating.sample(_PARES)},
)
