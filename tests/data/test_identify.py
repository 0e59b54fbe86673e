import pytest

from calque.data.identify import LINES, Sample, identify
from calque.language import Language

# Sentences of everyday use, written for these tests.
TEXTS = {
    "eng_Latn": "The children walked to the market because their mother had asked them to buy some bread.",
    "deu_Latn": "Die Kinder gingen zum Markt, weil ihre Mutter sie gebeten hatte, etwas Brot zu kaufen.",
    "fra_Latn": "Les enfants sont allés au marché parce que leur mère leur avait demandé d'acheter du pain.",
    "swh_Latn": "Watoto walikwenda sokoni kwa sababu mama yao aliwaomba wanunue mkate na maziwa ya kutosha.",
    "nya_Latn": "Ana anapita kumsika chifukwa amayi awo anawapempha kuti akagule buledi ndi mkaka wokwanira.",
    "rus_Cyrl": "Дети пошли на рынок, потому что их мать попросила их купить немного хлеба и молока.",
}


def lines(code, count=40):
    return [f"{TEXTS[code]} {i}" for i in range(count)]


@pytest.mark.parametrize("code", TEXTS)
def test_right_language_gives_no_warning(code):
    found = identify(lines(code), Language(code))
    assert found["warning"] == ""
    assert found["script_share"] > 0.99


@pytest.mark.parametrize(
    ("text", "asked", "said"),
    [
        ("eng_Latn", "deu_Latn", "looks like eng (English)"),
        ("fra_Latn", "swh_Latn", "looks like fra (French)"),
        ("eng_Latn", "nya_Latn", "looks like eng (English)"),  # py3langid does not know Chichewa
        ("rus_Cyrl", "nya_Latn", "only 0 % of the letters are in the script Latn"),
        ("eng_Latn", "rus_Cyrl", "only 0 % of the letters are in the script Cyrl"),
    ],
)
def test_wrong_language_is_said(text, asked, said):
    assert said in identify(lines(text), Language(asked))["warning"]


@pytest.mark.parametrize(("text", "asked"), [("swh_Latn", "nya_Latn"), ("nya_Latn", "sna_Latn")])
def test_neighbours_of_unknown_languages_are_not_called_wrong(text, asked):
    assert identify(lines(text), Language(asked))["warning"] == ""


@pytest.mark.parametrize(
    "sample", [[], ["moni"], ["Hello there, how are you?"] * 3, ["12.5", "%", "3/4"] * 100]
)
def test_short_or_empty_samples_say_nothing(sample):
    assert identify(sample, Language("nya_Latn"))["warning"] == ""


def test_sample_is_bounded_and_fair():
    sample = Sample()
    for number in range(10_000):
        sample.add(str(number))
    assert len(sample.lines) == LINES and sample.seen == 10_000
    assert 4000 < sum(map(int, sample.lines)) / LINES < 6000


def test_warning_when_a_file_is_opened(tmp_path, capsys):
    from calque.data.corpus import Corpus

    file = tmp_path / "a.txt"
    file.write_text("\n".join(lines("eng_Latn")))
    found = Corpus.open(file, language="deu")
    assert "warning:" in capsys.readouterr().err
    assert "English" in found.notes["looks"]["deu_Latn"]["warning"]
    Corpus.open(file, language="eng")
    assert "warning" not in capsys.readouterr().err
