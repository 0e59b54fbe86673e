"""Reading, cleaning and splitting as one step."""

import pytest

from calque.data.prepare import corpus
from calque.errors import ConfigError, DataError


@pytest.fixture
def pairs(tmp_path):
    """Six documents of four lines in two languages; the last repeats a line of the first."""
    lines = [f"word {n} here\tliwu {n} apa" for n in range(24)]
    lines[23] = "another word\tliwu 0 apa"
    for document in range(6):
        file = tmp_path / "pairs" / f"{document}.tsv"
        file.parent.mkdir(exist_ok=True)
        file.write_text("eng_Latn\tnya_Latn\n" + "\n".join(lines[4 * document : 4 * document + 4]) + "\n")
    return str(tmp_path / "pairs")


def test_parts_share_no_document_and_no_text(pairs):
    held = corpus(pairs, language="eng", to="nya", part="heldout", heldout=0.2, seed=3)
    train = corpus(pairs, language="eng", to="nya", part="train", heldout=0.2, seed=3)
    assert not {e.group for e in held} & {e.group for e in train}
    for language in ("eng_Latn", "nya_Latn"):
        assert not set(held.texts(language)) & set(train.texts(language))
    assert len(held) + len(train) + train.notes["across_split"] == 24


def test_without_keeps_held_out_text_out_of_another_corpus(pairs):
    held = corpus(pairs, language="eng", to="nya", only="nya", part="heldout", heldout=0.2, seed=3)
    rest = corpus(pairs, held, language="eng", to="nya")
    assert not set(held.texts()) & set(rest.texts("nya_Latn"))
    assert rest.languages == ("eng_Latn", "nya_Latn")
    with pytest.raises(DataError, match="nothing left"):
        corpus(pairs, corpus(pairs, language="eng", to="nya"), language="eng", to="nya")


def test_one_side_and_a_sample_of_whole_documents(pairs):
    side = corpus(pairs, language="eng", to="nya", only="nya")
    assert side.languages == ("nya_Latn",) and len(list(side.documents())) == 6
    some = corpus(pairs, language="eng", to="nya", only="nya", max_bytes=60)
    assert 1 <= len(list(some.documents())) < 6
    with pytest.raises(ConfigError):
        corpus(pairs, language="eng", to="nya", only="swh")
