import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calque.errors import ConfigError
from calque.language import Language, _rows, distance

CODES = sorted(f"{row.iso}_{script}" for row in _rows().values() for script in row.scripts)
languages = st.sampled_from(CODES).map(Language)


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ("nya", "nya_Latn"),
        ("ny", "nya_Latn"),
        ("NYA-latn", "nya_Latn"),
        ("nya_Latn", "nya_Latn"),
        ("Chichewa", "nya_Latn"),
        ("  chinyanja ", "nya_Latn"),
        ("en", "eng_Latn"),
        ("sw", "swh_Latn"),
        ("ug", "uig_Arab"),
        ("uzn_Cyrl", "uzn_Cyrl"),
        ("zh", "zho_Hans"),
        ("中文", "zho_Hans"),
        ("Farsi", "pes_Arab"),
    ],
)
def test_parse(asked, code):
    assert Language.parse(asked).code == code


@pytest.mark.parametrize(
    ("asked", "suggested"),
    [
        ("Chichewaa", "nya (Chichewa)"),
        ("Frensh", "fra (French)"),
        ("nyq", "nya"),
        ("nya_Latm", "nya_Latn"),
        ("Tonga", "tog, toi, ton"),
        ("", "give a code"),
        ("!!", "give a code"),
    ],
)
def test_unknown_is_answered_with_what_comes_near(asked, suggested):
    with pytest.raises(ConfigError) as error:
        Language.parse(asked)
    assert suggested in str(error.value)


def test_code_that_is_no_row_is_refused():
    with pytest.raises(ConfigError, match="did you mean"):
        Language("swa_Latin")


def test_parts():
    nya = Language.parse("nya")
    assert (nya.iso, nya.script, nya.name, nya.short, nya.area) == ("nya", "Latn", "Chichewa", "ny", "Africa")
    assert nya.family[0] == "Atlantic-Congo"
    assert "Narrow Bantu" in nya.family
    assert nya.place == (-14.8, 32.8)
    assert str(nya) == "nya_Latn"


def test_neighbours_of_chichewa_are_bantu():
    near = Language.parse("nya").near(10)
    assert all("Narrow Bantu" in language.family for language in near)
    assert len(near) == 10
    assert distance(Language.parse("nya"), near[0]) <= distance(Language.parse("nya"), near[-1])


def test_order_of_distances():
    nya, swh, eng, zho = (Language.parse(code) for code in ("nya", "swh", "eng", "zho"))
    assert distance(nya, swh) < distance(nya, eng) < distance(nya, zho)
    assert distance(eng, Language.parse("deu")) < distance(eng, Language.parse("rus"))


@given(languages, languages)
def test_distance_is_symmetric_and_within_0_and_1(a, b):
    assert 0 <= distance(a, b) <= 1
    assert distance(a, b) == distance(b, a)
    assert (distance(a, b) == 0) == (a == b) or a.iso != b.iso


@given(languages)
def test_distance_to_itself_is_0_and_codes_parse_to_themselves(language):
    assert distance(language, language) == 0
    assert Language.parse(language.code) == language
    assert Language.parse(language) is language
    assert Language.parse(language.iso).iso == language.iso
    assert Language.parse(language.short).iso == language.iso


def test_rows_are_sound():
    assert len(_rows()) > 1000
    for row in _rows().values():
        assert len(row.iso) == 3 and row.names and row.scripts
        assert all(len(script) == 4 for script in row.scripts)
        if row.place:
            assert -90 <= row.place[0] <= 90 and -180 <= row.place[1] <= 180


def test_heavy_libraries_are_not_imported():
    code = "import sys, calque.language as l; l.Language.parse('nya'); print('numpy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
