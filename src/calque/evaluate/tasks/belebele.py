"""Belebele: what a passage says, one of four answers, the same questions in 122 languages.

Questions about one passage share its group. Chance is 0.25.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from calque.evaluate.asking import correct, gold_choice, lettered, lettered_fields
from calque.evaluate.benchmark import Benchmark, Item, Row
from calque.evaluate.files import locate, needed, records

_CHOICES = ("mc_answer1", "mc_answer2", "mc_answer3", "mc_answer4")
_OWN = {"kor_Kore": "kor_Hang"}  # its code where that is another
_LANGUAGES = """
acm_Arab afr_Latn als_Latn amh_Ethi apc_Arab arb_Arab arb_Latn ars_Arab ary_Arab arz_Arab asm_Beng azj_Latn
bam_Latn ben_Beng ben_Latn bod_Tibt bul_Cyrl cat_Latn ceb_Latn ces_Latn ckb_Arab dan_Latn deu_Latn ell_Grek
eng_Latn est_Latn eus_Latn fin_Latn fra_Latn fuv_Latn gaz_Latn grn_Latn guj_Gujr hat_Latn hau_Latn heb_Hebr
hin_Deva hin_Latn hrv_Latn hun_Latn hye_Armn ibo_Latn ilo_Latn ind_Latn isl_Latn ita_Latn jav_Latn jpn_Jpan
kac_Latn kan_Knda kat_Geor kaz_Cyrl kea_Latn khk_Cyrl khm_Khmr kin_Latn kir_Cyrl kor_Kore lao_Laoo lin_Latn
lit_Latn lug_Latn luo_Latn lvs_Latn mal_Mlym mar_Deva mkd_Cyrl mlt_Latn mri_Latn mya_Mymr nld_Latn nob_Latn
npi_Deva npi_Latn nso_Latn nya_Latn ory_Orya pan_Guru pbt_Arab pes_Arab plt_Latn pol_Latn por_Latn ron_Latn
rus_Cyrl shn_Mymr sin_Latn sin_Sinh slk_Latn slv_Latn sna_Latn snd_Arab som_Latn sot_Latn spa_Latn srp_Cyrl
ssw_Latn sun_Latn swe_Latn swh_Latn tam_Taml tel_Telu tgk_Cyrl tgl_Latn tha_Thai tir_Ethi tsn_Latn tso_Latn
tur_Latn ukr_Cyrl urd_Arab urd_Latn uzn_Latn vie_Latn war_Latn wol_Latn xho_Latn yor_Latn zho_Hans zho_Hant
zsm_Latn zul_Latn
"""


def _rows(path: Path, language: str, split: str) -> Iterator[Row]:
    name = _config(language)
    return records(locate(path, f"{name}.jsonl", f"{name}.parquet", f"{name}/*{split}*.parquet"))


def _config(language: str) -> str:
    return _OWN.get(language, language)


def _item(row: Row, language: str, split: str) -> Item:
    fields = {
        "context": needed(row, "flores_passage", str).strip(),
        "question": needed(row, "question", str).strip(),
        "choices": lettered_fields(row, _CHOICES),
    }
    link = needed(row, "link", str)
    gold = gold_choice(row, "correct_answer_num", ("1", "2", "3", "4"))
    return Item(f"{link}#{row.get('question_number')}", language, fields, gold, link)


def _row(number: int, passage: str, question: str, *choices: str, right: int) -> Row:
    answers = dict(zip(_CHOICES, choices, strict=True))
    asked = {"link": "a", "question_number": number, "flores_passage": passage, "question": question}
    return {**asked, **answers, "correct_answer_num": str(right)}


_MARKET = "The market opens at six. Fish is sold first, because it does not keep; cloth is sold all day."
_MSIKA = "Msika umatsegulidwa 6 koloko. Nsomba zimagulitsidwa koyamba; nsalu zimagulitsidwa tsiku lonse."
_ZOGULITSA = ("Nsalu", "Nsomba", "Buledi", "Mchere")

BENCHMARK = Benchmark(
    name="belebele",
    paper="Bandarkar et al. 2024, 2024.acl-long.44",
    licence="CC-BY-SA-4.0",
    revision=1,
    languages=tuple(_LANGUAGES.split()),
    form="choice",
    rows=_rows,
    item=_item,
    prompt=lettered,
    score=correct,
    measures=("correct",),
    hub="facebook/belebele",
    config=_config,
    sample={
        "eng_Latn": (
            _row(1, _MARKET, "What is sold first?", "Cloth", "Fish", "Bread", "Salt", right=2),
            _row(2, _MARKET, "What is sold all day?", "Cloth", "Fish", "Bread", "Salt", right=1),
        ),
        "nya_Latn": (
            _row(
                1,
                _MSIKA,
                "N'chiyani chimagulitsidwa koyamba?",
                "Nsalu",
                "Nsomba",
                "Buledi",
                "Mchere",
                right=2,
            ),
            _row(
                2,
                _MSIKA,
                "N'chiyani chimagulitsidwa tsiku lonse?",
                "Nsalu",
                "Nsomba",
                "Buledi",
                "Mchere",
                right=1,
            ),
        ),
    },
)
