import json
from pathlib import Path

import pytest

from calque.errors import ConfigError, DataError
from calque.evaluate.benchmark import Answer, benchmark
from calque.evaluate.pack import LanguagePack
from calque.evaluate.source import Source
from calque.language import Language

B = benchmark("multiloko")
GOLDEN = json.loads((Path(__file__).parents[2] / "golden/25-multiloko.json").read_text(encoding="utf-8"))
NAMES = {"english": "eng_Latn", "czech": "ces_Latn", "thai": "tha_Thai"}


def put(folder, place, *rows):
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def row(name="p_0", **more):
    return {"id": name, "question": "Q?", "targets": ["Praha"], "output_type": "name", "text": ""} | more


def part(key):
    """(file of a partition, language, split) of the published key "czech_translated_human_english"."""
    owner, _, rest = key.partition("_translated_")
    if not rest:
        return f"{owner}/dev.jsonl", NAMES[owner], "dev"
    by, _, into = rest.partition("_")
    language, way = (into, "from") if owner == "english" else (owner, "to")
    return f"{owner}/dev_translated_{by}_{into}.jsonl", NAMES[language], f"dev:{way}-english-{by}"


@pytest.mark.parametrize("case", [c for c in GOLDEN["cases"] if c["kind"] == "table"], ids=["full", "gaps"])
def test_the_means_of_every_part_are_those_of_the_authors(tmp_path, case):
    """Where an answer is missing, the authors leave the item out; here it counts as wrong."""
    given = {(p["language"], p["id"]): p["prediction"] for p in case["predictions"]}
    for key, listed in case["references"].items():
        place, language, split = part(key)
        put(tmp_path, place, *(row(r["id"], targets=r["targets"]) for r in listed))
        items = Source.open(tmp_path).items(B, language, split)
        scores = [B.score(i, Answer(given.get((key, i.id), "")), LanguagePack.of(language)) for i in items]
        answered = [s for s, i in zip(scores, items, strict=True) if (key, i.id) in given]
        means = {name: sum(s[name] for s in answered) / len(answered) for name in scores[0]}
        wanted = case["per_partition"][key]
        assert means["em/published"] == pytest.approx(wanted["em"])
        assert means["f1/published"] == pytest.approx(wanted["f1"])
        assert means["edit_similarity"] == pytest.approx(wanted["edit_similarity"])
        assert 100 * means["chrf"] == pytest.approx(wanted["chrf"], abs=1e-6)
        if intended := case.get("as_intended"):
            assert sum(s["em"] for s in scores) / len(scores) == pytest.approx(intended["em"][key])


def test_bengali_digits_and_case_are_no_mistake():
    item = B.item(row(targets=["১৯৫২"]), "ben_Beng", "dev")
    found = B.score(item, Answer(" 1952."), LanguagePack.of("bn"))
    assert (found["em"], found["em/published"]) == (1.0, 0.0)


def test_a_part_in_english_is_asked_scored_and_guarded_as_english(tmp_path):
    put(tmp_path, "czech/dev_translated_machine_english.jsonl", row(targets=["the castle"]))
    put(tmp_path, "english/knowledge_fewshot.jsonl", row("s", question="Who?", targets=["Ann"]))
    put(tmp_path, "czech/knowledge_fewshot.jsonl", row("s", question="Kdo?", targets=["Jan"]))
    source = Source.open(tmp_path)
    (item,) = source.items(B, "ces_Latn", "dev:to-english-machine")
    assert item.language == "ces_Latn" and item.fields["answer_language"] == "eng_Latn"
    czech = LanguagePack.of("cs")
    shots = source.items(B, "ces_Latn", "validation:to-english-machine")
    prompt = B.prompt(item, czech, shots)
    assert "Question: Who? Give only a name.\nAnswer: Ann" in prompt.text and prompt.text.endswith("Answer:")
    assert B.score(item, Answer("castle"), czech)["em"] == 1.0
    with pytest.raises(ConfigError, match="validation:to-english-human"):
        B.prompt(item, czech, source.items(B, "ces_Latn", "validation"))


def test_a_prompt_is_in_the_words_of_the_language():
    items = Source.open("sample").items(B, "ben_Beng", "dev")
    text = B.prompt(items[-1], LanguagePack.of("bn"), items[:5]).text
    assert text.count("প্রশ্ন:") == 6 and text.endswith("উত্তর:") and "Question" not in text


def test_all_31_languages_have_a_folder():
    assert len(set(B.languages)) == 31 and all(Language.parse(code).code == code for code in B.languages)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (row(targets=[" ", ""]), r"dev\.jsonl:1: no accepted answer that is not blank"),
        (row(targets=None), "targets are None"),
        (row(targets=[1952]), "expected a list of accepted answers"),
        (row(question=" "), r"dev\.jsonl:1: 'question' is blank"),
    ],
)
def test_a_record_that_is_none_is_refused(tmp_path, bad, said):
    put(tmp_path, "czech/dev.jsonl", bad)
    with pytest.raises(DataError, match=said):
        Source.open(tmp_path).items(B, "ces_Latn", "dev")


def test_wrong_folders_parts_and_languages_are_refused(tmp_path):
    put(tmp_path, "czech/dev.jsonl", row(), row())
    source = Source.open(tmp_path)
    with pytest.raises(DataError, match=r"dev\.jsonl:2: id 'p_0' is given twice, first at"):
        source.items(B, "ces_Latn", "dev")
    with pytest.raises(DataError, match=r"no test\.jsonl in this folder"):
        source.items(B, "ces_Latn", "test")
    with pytest.raises(DataError, match="no such file or folder"):
        source.items(B, "tha_Thai", "dev")
    with pytest.raises(ConfigError, match=r"MultiLoKo is not in nya_Latn"):
        source.items(B, "nya_Latn", "dev")
    with pytest.raises(ConfigError, match=r"no part 'dev:english'"):
        source.items(B, "ces_Latn", "dev:english")
    with pytest.raises(ConfigError, match="no part"):
        source.items(B, "eng_Latn", "dev:to-english-human")
    with pytest.raises(DataError, match="a file; give the unpacked folder"):
        Source.open(tmp_path / "czech/dev.jsonl").items(B, "ces_Latn", "dev")


def test_the_parts_of_a_language_pair_up_to_the_effects(tmp_path):
    """Mother-tongue and locality effect and consistency of the golden table, from scores by part and id."""
    table = next(c for c in GOLDEN["cases"] if c["kind"] == "table")
    wanted = next(c for c in GOLDEN["cases"] if c["kind"] == "effects")
    given = {(p["language"], p["id"]): p["prediction"] for p in table["predictions"]}
    right = {}
    for key, listed in table["references"].items():
        place, language, split = part(key)
        put(tmp_path, place, *(row(r["id"], targets=r["targets"]) for r in listed))
        items = Source.open(tmp_path).items(B, language, split)
        scores = {i.id: B.score(i, Answer(given[key, i.id]), LanguagePack.of(language)) for i in items}
        right[language, split] = {name: found["em/published"] for name, found in scores.items()}

    def percent(language, split):
        return 100 * sum(right[language, split].values()) / len(right[language, split])

    for name in ("czech", "thai"):
        code = NAMES[name]
        local, english = right[code, "dev"], right[code, "dev:to-english-human"]
        effect = percent(code, "dev") - percent(code, "dev:to-english-human")
        assert effect == pytest.approx(wanted["mother_tongue_effect"][name])
        effect = percent(code, "dev") - percent(code, "dev:from-english-human")
        assert effect == pytest.approx(wanted["locality_effect"][name])
        both = sum(min(local[i], english[i]) for i in local)
        some = sum(max(local[i], english[i]) for i in local)
        assert both / some == pytest.approx(wanted["consistency"][name])
