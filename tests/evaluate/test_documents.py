import pytest
from hypothesis import given
from hypothesis import strategies as st

from calque.data.corpus import Corpus
from calque.data.example import Example
from calque.errors import DataError
from calque.evaluate import documents as d

lines = st.lists(
    st.text("ab é\U0001f642 ", min_size=1, max_size=40).filter(str.strip), min_size=1, max_size=9
)


def corpus(texts, groups=None):
    groups = groups or [f"g{i}" for i in range(len(texts))]
    return Corpus.of(
        Example(str(i), {"nya_Latn": text}, group=group)
        for i, (text, group) in enumerate(zip(texts, groups, strict=True))
    )


@given(lines, st.integers(1, 300))
def test_a_budget_is_kept_and_every_document_has_its_share(texts, budget):
    whole = d.documents(corpus(texts), "nya_Latn")
    cut = d.documents(corpus(texts), "nya_Latn", budget)
    names = [c.item for c in cut]
    assert len(cut) >= min(8, len(whole))
    whole = [w for w in whole if w.item in names] if sum(w.nbytes for w in whole) > budget else whole
    assert names == [w.item for w in whole]
    assert all(w.text.startswith(c.text) for c, w in zip(cut, whole, strict=True))
    if budget >= 4 * len(texts):
        assert sum(c.nbytes for c in cut) <= budget
    longest = max(c.nbytes for c in cut)
    for c, w in zip(cut, whole, strict=True):
        assert c.text == w.text or c.nbytes >= longest / 2 - 4
    if sum(w.nbytes for w in whole) <= budget:
        assert cut == whole


def test_lines_of_a_group_are_one_document_wherever_they_stand():
    found = d.documents(corpus(["a", "b", "c"], ["x", "y", "x"]), "nya_Latn")
    assert [(f.item, f.text) for f in found] == [("x", "a\nc"), ("y", "b")]
    single = d.documents(corpus(["a", "b"], ["", ""]), "nya_Latn")
    assert [f.item for f in single] == ["0", "1"]


def test_words_are_runs_without_blanks_or_characters_where_there_are_none():
    assert d.words("Ng'ombe zinayi,\n m'mudzi.", "nya_Latn") == 3
    assert d.words("สวัสดีครับ", "tha_Thai") == 7
    assert d.words("你好 吗", "zho_Hans") == 3
    assert d.split_words("ሰላም ነው", "amh_Ethi") == ["ሰላም", "ነው"]


def test_picked_documents_are_spread_over_the_corpus():
    found = [d.Document(str(i), "x") for i in range(10)]
    assert [p.item for p in d.pick(found, 3)] == ["0", "3", "6"]
    assert d.pick(found[:2], 5) == found[:2]


def test_an_empty_side_is_refused():
    with pytest.raises(DataError, match="no text in eng_Latn to score; the corpus has nya_Latn"):
        d.documents(corpus(["a"]), "eng_Latn")
    with pytest.raises(DataError, match="no text to score"):
        d.sides({})
