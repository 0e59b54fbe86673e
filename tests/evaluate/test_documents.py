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


@given(st.lists(st.integers(1, 9000), min_size=1, max_size=12), st.integers(1, 30_000))
def test_a_budget_buys_beginnings_of_a_useful_length_of_as_many_documents_as_it_can(sizes, budget):
    whole = d.documents(corpus([("ab é " * size)[:size] + "x" for size in sizes]), "nya_Latn")
    cut = d.documents(corpus([w.text for w in whole]), "nya_Latn", budget)
    by_item = {w.item: w for w in whole}
    assert [c.item for c in cut] == [w.item for w in whole if w.item in {c.item for c in cut}]
    assert all(by_item[c.item].text.startswith(c.text) for c in cut)
    assert sum(c.nbytes for c in cut) <= max(budget, 4)
    if len(cut) > 1:
        assert all(c.nbytes >= 700 or c.text == by_item[c.item].text for c in cut)
    if len(cut) < len(whole):
        assert sum(min(2000, w.nbytes) for w in whole) >= budget
    if sum(w.nbytes for w in whole) <= budget:
        assert cut == whole


def test_the_same_documents_are_taken_in_every_language():
    one = d.documents(corpus(["a" * 3000] * 9), "nya_Latn", 6000)
    two = d.documents(corpus(["b" * 2500] * 9), "nya_Latn", 6000)
    assert [c.item for c in one] == [c.item for c in two] and len(one) == 3


@given(lines, st.integers(1, 60))
def test_a_cut_falls_between_characters_and_between_words_where_there_are_any(texts, nbytes):
    for text in texts:
        cut = d._beginning(text, nbytes)
        assert text.startswith(cut) and cut
        assert len(cut.encode()) <= max(nbytes, 4)


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
