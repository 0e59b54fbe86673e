"""MultiLoKo: short questions of local interest in 31 languages, and their translations both ways.

The language of an item is the locale whose data it is part of; the part says what is asked: "dev" the local
questions, "dev:to-english-human" (or -machine) the same in English, "dev:from-english-human" (or -machine)
the English questions in the language. Ids are kept, so that the parts of a language pair up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from calque.errors import ConfigError, DataError
from calque.evaluate.asking import beside, shown
from calque.evaluate.benchmark import Answer, Benchmark, Item, Prompt, Row
from calque.evaluate.files import locate, needed, records, unique
from calque.evaluate.normal import short_answer
from calque.evaluate.pack import LanguagePack

_ENGLISH = "eng_Latn"
_FOLDERS = {
    "arb_Arab": "arabic", "ben_Beng": "bengali", "yue_Hant": "cantonese", "ces_Latn": "czech",
    "nld_Latn": "dutch", "eng_Latn": "english", "pes_Arab": "farsi", "fra_Latn": "french",
    "deu_Latn": "german", "heb_Hebr": "hebrew", "hin_Deva": "hindi", "ind_Latn": "indonesian",
    "ita_Latn": "italian", "jpn_Jpan": "japanese", "khm_Khmr": "khmer", "kor_Kore": "korean",
    "zsm_Latn": "malay", "mar_Deva": "marathi", "pol_Latn": "polish", "por_Latn": "portuguese",
    "ron_Latn": "romanian", "rus_Cyrl": "russian", "zho_Hans": "simplified_mandarin",
    "spa_Latn": "spanish", "swe_Latn": "swedish", "tgl_Latn": "tagalog", "tha_Thai": "thai",
    "zho_Hant": "traditional_mandarin", "tur_Latn": "turkish", "urd_Arab": "urdu", "vie_Latn": "vietnamese",
}  # fmt: skip
_PARTS = ("", *(f"{way}-english-{by}" for way in ("to", "from") for by in ("human", "machine")))


def _rows(path: Path, language: str, split: str) -> Iterator[Row]:
    """A file of the folder that the authors' archive unpacks to; examples are the part "validation"."""
    name, _, part = split.partition(":")
    if language not in _FOLDERS:
        raise ConfigError(f"MultiLoKo is not in {language}; it is in {', '.join(_FOLDERS)}")
    if part not in _PARTS or (part and language == _ENGLISH):
        raise ConfigError(f"MultiLoKo has no part '{split}' for {language}; there are {_parts()}")
    if path.is_file():
        raise DataError(f"{path}: a file; give the unpacked folder with a folder for each language")
    folder, by = _FOLDERS[language], part.rpartition("-")[2]
    if name == "validation":
        name, folder = "knowledge_fewshot", "english" if part.startswith("to") else folder
    elif part.startswith("to"):
        name = f"{name}_translated_{by}_english"
    elif part:
        name, folder = f"{name}_translated_{by}_{folder}", "english"
    yield from unique(records(locate(path / folder, f"{name}.jsonl")), "id")


def _parts() -> str:
    return ", ".join(f"dev:{part}" if part else "dev" for part in _PARTS)


def _item(row: Row, language: str, split: str) -> Item:
    golds = row.get("targets", row.get("answer"))
    golds = [golds] if isinstance(golds, str) else golds
    where = row.get("where", "record")
    if not isinstance(golds, list) or not all(isinstance(gold, str) for gold in golds):
        raise DataError(f"{where}: targets are {golds!r:.60}, expected a list of accepted answers")
    golds = tuple(dict.fromkeys(gold for gold in golds if gold.strip()))
    if not golds:
        raise DataError(f"{where}: no accepted answer that is not blank")
    fields = {
        "question": needed(row, "question", str).strip(),
        "kind": str(row.get("output_type") or "").strip(),
        "answer_language": _ENGLISH if ":to-" in split else language,
    }
    name = str(row.get("id") or where.rpartition(":")[2])
    return Item(name, language, fields, golds)


def _prompt(item: Item, pack: LanguagePack, shots: Sequence[Item]) -> Prompt:
    """Five examples and the question, in the language that is asked in."""
    asked = item.fields["answer_language"]
    if wrong := [shot.id for shot in shots if shot.fields["answer_language"] != asked]:
        raise ConfigError(
            f"example '{wrong[0]}' is not in {asked} as the question is; with a part in English, take the "
            "examples from validation:to-english-human"
        )
    pack = LanguagePack.of(asked) if pack.code == item.language else pack

    def ask(one: Item) -> str:
        produce = " " + pack["produce"].format(kind=one.fields["kind"]) if one.fields["kind"] else ""
        return f"{beside(pack['question'], one.fields['question'] + produce)}\n{pack['answer']}"

    text = shown(item, shots, ask, lambda shot: shot.gold[0], pack["concise"])
    return Prompt(text, stop=("\n", pack["question"]), max_tokens=48)


def _score(item: Item, answer: Answer, pack: LanguagePack) -> Mapping[str, float]:
    scores = short_answer(answer.text, item.gold, LanguagePack.of(item.fields["answer_language"]))
    return {**scores, "answer_characters": float(len(answer.text.strip()))}


def _row(name: str, question: str, kind: str, *targets: str) -> Row:
    return {"id": name, "question": question, "output_type": kind, "targets": list(targets), "text": ""}


BENCHMARK = Benchmark(
    name="multiloko",
    paper="Hupkes and Bogoychev 2025, arXiv:2504.10356",
    licence="by its authors; its archive is encrypted and must not be mirrored",
    revision=1,
    languages=tuple(_FOLDERS),
    form="text",
    rows=_rows,
    item=_item,
    prompt=_prompt,
    score=_score,
    measures=("em", "f1", "em/published", "f1/published", "edit_similarity", "chrf"),
    shots=5,
    sample={
        "eng_Latn": (
            _row("river_0", "Which river flows through Cambridge?", "name", "Cam", "River Cam"),
            _row("bridge_0", "In which year did Tower Bridge open?", "year", "1894"),
            _row("isle_0", "What is the largest island of Shetland called?", "name", "Mainland"),
            _row("hill_0", "On which hill does Edinburgh's old observatory stand?", "name", "Calton Hill"),
            _row("dale_0", "In which national park is Wensleydale?", "name", "Yorkshire Dales"),
            _row("wall_0", "Which emperor had a wall built in northern England?", "name", "Hadrian"),
        ),
        "ben_Beng": (
            _row("nodi_0", "ঢাকা কোন নদীর তীরে অবস্থিত?", "নাম", "বুড়িগঙ্গা", "বুড়িগঙ্গা নদী"),
            _row("bhasha_0", "ভাষা আন্দোলন কোন সালে হয়েছিল?", "সাল", "১৯৫২", "1952"),
            _row("phul_0", "বাংলাদেশের জাতীয় ফুল কী?", "নাম", "শাপলা"),
            _row("pakhi_0", "বাংলাদেশের জাতীয় পাখি কী?", "নাম", "দোয়েল"),
            _row("kobi_0", "বাংলাদেশের জাতীয় কবি কে?", "নাম", "কাজী নজরুল ইসলাম", "নজরুল"),
            _row("shohor_0", "বাংলাদেশের রাজধানী কোথায়?", "স্থান", "ঢাকা"),
        ),
    },
)
