import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calque.data.corpus import Corpus
from calque.data.example import Example, Span
from calque.errors import ConfigError, DataError

texts = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=12)
sides = st.fixed_dictionaries({"nya_Latn": texts, "eng_Latn": texts})


@st.composite
def corpora(draw, min_groups=2):
    count = draw(st.integers(min_groups, 6))
    rows = []
    for group in range(count):
        for item in range(draw(st.integers(1, 5))):
            rows.append(Example(f"{group}.{item}", draw(sides), f"group {group}"))
    return Corpus.of(rows)


def corpus(*lines, group="a"):
    return Corpus.of(Example(f"{group}{i}", {"nya_Latn": line}, group) for i, line in enumerate(lines))


@given(corpora(), st.floats(0.01, 0.99), st.integers(0, 5))
def test_split_cuts_no_group_and_shares_no_text(found, share, seed):
    try:
        train, test = found.split(share, seed=seed)
    except DataError as error:
        assert "nothing left to train on" in str(error)
        return
    assert set(train.groups()).isdisjoint(test.groups())
    assert len(test) >= 1
    for group, count in test.groups().items():
        assert count == found.groups()[group]
    for language in found.languages:
        assert set(train.texts(language)).isdisjoint(test.texts(language))
    assert len(train) + len(test) + train.notes["across_split"] == len(found)
    assert [e.id for e in found.split(share, seed=seed)[1]] == [e.id for e in test]


@given(corpora(), st.integers(1, 3))
def test_split_by_number_of_groups(found, number):
    if number >= len(found.groups()):
        with pytest.raises(ConfigError):
            found.split(number, seed=0)
    else:
        try:
            assert len(found.split(number, seed=0)[1].groups()) == number
        except DataError as error:
            assert "nothing left" in str(error)


@given(found=corpora(min_groups=1), data=st.data())
@settings(max_examples=30)
def test_save_and_load_give_the_same(found, data, tmp_path_factory):
    rows = []
    for example in found:
        text = example.sides["nya_Latn"]
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, len(text)))
        target = data.draw(st.one_of(st.none(), st.integers(), texts))
        spans = {"nya_Latn": (Span(start, end, "label"),)}
        rows.append(Example(example.id, example.sides, example.group, target, spans))
    folder = tmp_path_factory.mktemp("corpus") / "saved"
    Corpus.of(rows, {"read": 3}).save(folder)
    loaded = Corpus.load(folder)
    assert list(loaded) == rows
    assert list(loaded) == rows, "a second reading gives the same"
    assert loaded.languages == found.languages
    assert loaded.notes == {"read": 3}


@given(corpora(min_groups=1), st.integers(1, 200))
def test_sample_takes_whole_groups(found, n_bytes):
    part = found.sample(n_bytes)
    assert 0 < len(part) <= len(found)
    for group, count in part.groups().items():
        assert count == found.groups()[group]
    size = sum(len(t.encode()) for e in part for t in e.sides.values())
    assert size >= n_bytes or len(part) == len(found)


@given(st.text(max_size=20), st.integers(-3, 25), st.integers(-3, 25))
def test_spans_lie_inside_their_side(text, start, end):
    inside = 0 <= start <= end <= len(text)
    if inside:
        assert Example("x", {"nya_Latn": text}, spans={"nya_Latn": (Span(start, end),)})
    else:
        with pytest.raises(DataError, match="outside"):
            Example("x", {"nya_Latn": text}, spans={"nya_Latn": (Span(start, end),)})


def test_spans_of_a_missing_side():
    with pytest.raises(DataError, match="spans for eng_Latn, sides are nya_Latn"):
        Example("x", {"nya_Latn": "a"}, spans={"eng_Latn": (Span(0, 1),)})


def test_sides_documents_and_pairs():
    rows = [
        Example("1", {"eng_Latn": "one", "nya_Latn": "modzi"}, "a"),
        Example("2", {"eng_Latn": "two", "nya_Latn": "ziwiri"}, "a"),
        Example("3", {"eng_Latn": "three"}, "b"),
    ]
    found = Corpus.of(rows)
    assert list(found.texts("nya")) == ["modzi", "ziwiri"]
    assert list(found.documents("English")) == [("a", "one\ntwo"), ("b", "three")]
    assert list(found.pairs("ny", "en")) == [("modzi", "one"), ("ziwiri", "two")]
    assert list(found.only("nya").texts()) == ["modzi", "ziwiri"]
    assert found.only("nya").languages == ("nya_Latn",)
    with pytest.raises(ConfigError, match="say which one"):
        found.texts()
    with pytest.raises(ConfigError, match="no side swh_Latn"):
        found.texts("swh")


def test_split_by_name_and_without():
    found = Corpus.of([*corpus("x", "y"), *corpus("z", "y", group="b"), *corpus("w", group="c")])
    train, test = found.split(["b"])
    assert list(test.texts()) == ["z", "y"]
    assert list(train.texts()) == ["x", "w"]
    assert train.notes["across_split"] == 1
    with pytest.raises(ConfigError, match="unknown"):
        found.split(["nothing"])
    with pytest.raises(DataError, match="nothing left"):
        found.without(found)


def test_one_document_can_not_be_split():
    with pytest.raises(DataError, match="separate documents by an empty line"):
        corpus("a", "b", "c").split(0.5, seed=0)


@pytest.mark.parametrize("share", [0.0, 1.0, -1, 0, 7])
def test_share_outside_its_range(share):
    found = Corpus.of([*corpus("x"), *corpus("y", group="b")])
    with pytest.raises(ConfigError):
        found.split(share, seed=0)


def test_same_id_twice():
    with pytest.raises(DataError, match="two examples have the id 'a0'"):
        Corpus.of([*corpus("x"), *corpus("y")])


def test_saved_corpus_that_is_damaged(tmp_path):
    corpus("x", "y").save(tmp_path / "c")
    file = tmp_path / "c" / "examples.jsonl"
    file.write_text(file.read_text().splitlines()[0] + "\n")
    with pytest.raises(DataError, match=r"1 examples, corpus\.json says 2"):
        Corpus.load(tmp_path / "c")
    file.write_text('{"id": 1}\nnot json\n')
    with pytest.raises(DataError, match=r"examples\.jsonl:1"):
        list(Corpus.load(tmp_path / "c"))
    with pytest.raises(DataError, match="no saved corpus"):
        Corpus.load(tmp_path)
