"""The texts of the open assets: out of small files of the carriers' form, and what the real ones hold."""

import json

import pytest

from calque.data import carriers
from calque.data.corpus import Corpus
from calque.errors import DataError


def rows(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_kolibri(tmp_path):
    messages = {
        "en": {"A.x": "Open ", "A.y": "{n} files", "B.z": "Wi-Fi", "B.w": "", "B.v": "Close"},
        "ny": {"A.x": "Tsegulani", "A.y": "mafayilo {n}", "B.z": "Wi-Fi", "B.w": "", "B.v": "Tsekani {x}"},
        "ach_UG": {"A.x": "crwdns1"},
    }
    for locale, found in messages.items():
        folder = tmp_path / "in" / locale / "LC_MESSAGES"
        folder.mkdir(parents=True)
        (folder / "kolibri.plugins.learn.app-messages.json").write_text(json.dumps(found))
    out = tmp_path / "out"
    out.mkdir()
    carriers.kolibri(tmp_path / "in", out)
    assert {file.name for file in out.iterdir()} == {"eng_Latn.jsonl", "nya_Latn.jsonl"}
    assert rows(out / "nya_Latn.jsonl") == [
        {"id": "learn.app/A.x", "sides": {"nya_Latn": "Tsegulani"}, "group": "learn.app/A"}
    ]
    assert [row["sides"]["eng_Latn"] for row in rows(out / "eng_Latn.jsonl")] == ["Open", "Wi-Fi", "Close"]


def test_bible_in_chapters(tmp_path):
    for book, chapter, verses in [(1, 2, ["c"]), (1, 1, ["a", ""]), (1, 10, ["d"]), (66, 1, ["z`s"])]:
        (tmp_path / "in" / str(book)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / str(book) / f"{chapter}.json").write_text(json.dumps(verses))
    carriers.bible_chapters(tmp_path / "in", tmp_path)
    found = rows(tmp_path / "nya_Latn.jsonl")
    assert [row["id"] for row in found] == ["GEN.1.1", "GEN.2.1", "GEN.10.1", "REV.1.1"]
    assert found[3] == {"id": "REV.1.1", "sides": {"nya_Latn": "z's"}, "group": "REV"}


def test_bible_listing_is_read_as_data_and_never_run(tmp_path):
    ran = tmp_path / "ran"
    source = tmp_path / "bible.py"
    source.write_text(
        f"open({str(ran)!r}, 'w')\nfrom x import Bible, V\n"
        "bible = Bible(V.W, 'In the beginning. And then.', "
        "{1001001: 0, 1001002: 18}, {1001001: 18, 1001002: 27})\n"
    )
    carriers.bible_listing(source, tmp_path)
    assert not ran.exists()
    assert [(row["id"], row["sides"]["eng_Latn"]) for row in rows(tmp_path / "eng_Latn.jsonl")] == [
        ("GEN.1.1", "In the beginning."),
        ("GEN.1.2", "And then."),
    ]
    source.write_text("bible = 3\n")
    with pytest.raises(DataError, match="not the listing"):
        carriers.bible_listing(source, tmp_path)


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        (" God`s  word ", "God's word"),
        ("of the first -[fruits] [which] are", "of the first-fruits which are"),
        ("Praise Yah! Psalm 147", "Praise Yah!"),
        ("Amen. BOOK II Psalm 42 For the Chief Musician.", "Amen."),
        ("wanga,alibe;inu. Ha!Iye", "wanga, alibe; inu. Ha! Iye"),
    ],
)
def test_faults_of_the_carriers_are_mended(text, mended):
    (verse,) = carriers._verse("PSA", 1, 1, text, "nya_Latn")
    assert verse.sides == {"nya_Latn": mended}


def test_quran(tmp_path):
    (tmp_path / "translations.json").write_text(
        json.dumps({"uz": {"1": {"1": "а"}}, "en": {"1": {"1": "a"}}})
    )
    (tmp_path / "arabic.json").write_text(json.dumps({"1": {"1": "ا"}}))
    carriers.quran(tmp_path, tmp_path)
    assert {f.name for f in tmp_path.glob("*.jsonl")} == {
        "uzn_Cyrl.jsonl",
        "eng_Latn.jsonl",
        "arb_Arab.jsonl",
    }
    assert rows(tmp_path / "uzn_Cyrl.jsonl") == [{"id": "1:1", "sides": {"uzn_Cyrl": "а"}, "group": "sura 1"}]


@pytest.mark.asset("bible-nya")
@pytest.mark.asset("bible-eng")
def test_verses_of_the_two_bibles_belong_together():
    found = Corpus.open("bible-eng|bible-nya")
    assert len(found) > 30_000
    examples = list(found)
    assert len({example.group for example in examples}) == 66
    verses = {example.id: example.sides for example in examples}
    assert not any(
        set("[]`") & set(text) or "Psalm 4" in text for s in verses.values() for text in s.values()
    )
    assert verses["GEN.1.1"]["nya_Latn"] == "Pachiyambi Mulungu adalenga kumwamba ndi dziko lapansi."
    assert verses["JHN.11.35"] == {"eng_Latn": "Jesus wept.", "nya_Latn": "Yesu analira."}
    # Verses that belong together are long together; shifted by one they are not.
    english, chichewa = zip(*((len(s["eng_Latn"]), len(s["nya_Latn"])) for s in verses.values()), strict=True)
    assert correlation(english, chichewa) > 0.85 > 0.5 > correlation(english[1:], chichewa[:-1])
    # A name that both languages write alike stands on both sides of most verses that have it.
    with_name = [sides for sides in verses.values() if "David" in sides["eng_Latn"]]
    assert len(with_name) > 800
    assert sum("Davide" in sides["nya_Latn"] for sides in with_name) / len(with_name) > 0.9


def correlation(a, b):
    import numpy

    return float(numpy.corrcoef(a, b)[0, 1])


@pytest.mark.asset("kolibri")
def test_messages_of_kolibri_belong_together():
    found = Corpus.open("kolibri:eng_Latn|nya_Latn")
    assert len(found) > 1500
    assert len(found.groups()) > 200
    assert not any("{" in text for example in found for text in example.sides.values())
    assert ("Add device", "Onjezerani chipangizo") in set(found.pairs("en", "ny"))


@pytest.mark.asset("quran")
def test_quran_in_uyghur():
    found = Corpus.open("quran:uig_Arab")
    assert len(found.groups()) == 114
    assert found.notes["read"] == 6236
