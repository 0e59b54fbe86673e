"""Word alignment: what must hold for any text, and what it finds in languages made for the purpose."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calque.data.align import align, lexicon, translations, words
from calque.data.aligner import Model, Settings
from calque.data.cooccurrence import Cooccurrence, batches, encode
from calque.data.corpus import Corpus
from calque.data.example import Example
from calque.data.lexicon import Lexicon
from calque.data.links import Links, agreement, symmetrize
from calque.data.position import Diagonal, Jumps, Weights
from calque.errors import ConfigError, DataError

RULES = ("intersection", "grow-diag", "grow-diag-final-and", "grow-diag-final", "union")
sentence = st.lists(st.sampled_from(list("abcdefg")), max_size=8)
texts = st.lists(st.tuples(sentence, sentence), min_size=1, max_size=8).filter(
    lambda pairs: any(one and two for one, two in pairs)
)
point = st.tuples(st.integers(0, 6), st.integers(0, 6))
few = settings(deadline=None, max_examples=40)
linkings = st.lists(st.tuples(st.sets(point, max_size=12), st.sets(point, max_size=12)), max_size=5)


def invented(n, seed=0, size=60, swap=0.3):
    """Sentences over Zipf-like words, each translated by its own word, neighbours sometimes exchanged."""
    chance = random.Random(seed)
    vocabulary = [f"w{k}" for k in range(size)]
    weight = [1 / (k + 2) for k in range(size)]
    source, target, gold = [], [], []
    for _ in range(n):
        line = chance.choices(vocabulary, weight, k=chance.randint(2, 9))
        order = list(range(len(line)))
        for k in range(len(line) - 1):
            if chance.random() < swap:
                order[k], order[k + 1] = order[k + 1], order[k]
        source.append(line)
        target.append(["x" + line[k][1:] for k in order])
        gold.append([(k, place) for place, k in enumerate(order)])
    return source, target, Links.of(gold)


def same(one, other):
    return list(one.lines()) == list(other.lines())


def points(links):
    return [set(zip(*(side.tolist() for side in links[k]), strict=True)) for k in range(len(links))]


# links


@given(linkings)
@few
def test_rules_include_each_other(pairs):
    forward, reverse = (Links.of([pair[k] for pair in pairs]) for k in (0, 1))
    sets = {how: points(symmetrize(forward, reverse, how)) for how in RULES}
    for k, (one, two) in enumerate(pairs):
        assert sets["intersection"][k] == one & two
        assert sets["union"][k] == one | two
        for smaller, larger in (("intersection", "grow-diag"), ("grow-diag", "grow-diag-final-and")):
            assert sets[smaller][k] <= sets[larger][k]
        assert sets["grow-diag"][k] <= sets["grow-diag-final"][k] <= sets["union"][k]


@given(linkings)
@few
def test_growing_by_hand(pairs):
    """The vectorised rule is the one of the docstring, one link at a time."""
    forward, reverse = (Links.of([pair[k] for pair in pairs]) for k in (0, 1))
    for how in ("grow-diag", "grow-diag-final", "grow-diag-final-and"):
        found = points(symmetrize(forward, reverse, how))
        assert found == [grown(one, two, how) for one, two in pairs]


def grown(one, two, how):
    taken = one & two

    def free(link, both):
        has = [not any(link[k] == other[k] for other in taken) for k in (0, 1)]
        return all(has) if both else any(has)

    def touches(link):
        return any(max(abs(link[0] - i), abs(link[1] - j)) == 1 for i, j in taken)

    while ready := [link for link in sorted((one | two) - taken) if free(link, False) and touches(link)]:
        taken = taken | {ready[0]}
    if how != "grow-diag":
        for direction in (one, two):
            while ready := [x for x in sorted(direction - taken) if free(x, how.endswith("and"))]:
                taken = taken | {ready[0]}
    return taken


def test_symmetrize_works_in_blocks(monkeypatch):
    source, target, _ = invented(50)
    forward, reverse = (align(source, target, symmetrize=how) for how in ("union", "intersection"))
    whole = symmetrize(forward, reverse)
    monkeypatch.setattr("calque.data.links._BLOCK", 7)
    assert same(symmetrize(forward, reverse), whole)


def test_symmetrize_refuses_different_numbers_of_pairs():
    with pytest.raises(DataError, match="2 pairs and of 1 pairs"):
        symmetrize(Links.of([[], []]), Links.of([[]]))


@given(linkings)
@few
def test_transposing_twice_changes_nothing(pairs):
    links = Links.of([one for one, _ in pairs])
    assert same(links.transpose().transpose(), links)
    assert points(links.transpose()) == [{(j, i) for i, j in one} for one, _ in pairs]


def test_agreement_is_f1():
    one, two = Links.of([[(0, 0), (1, 1)], [(2, 0)]]), Links.of([[(0, 0)], [(2, 1), (2, 0)]])
    assert agreement(one, two) == pytest.approx(2 * 2 / 6)
    assert agreement(one, one) == 1.0
    assert agreement(Links.of([[]]), Links.of([[]])) == 1.0


def test_links_are_read_by_pair():
    links = Links.of([[(1, 0), (0, 1)], [], [(3, 2)]])
    assert list(links.lines()) == ["0-1 1-0", "", "3-2"]
    assert links[-1][0].tolist() == [3]
    with pytest.raises(IndexError):
        links[3]


# any text


@given(texts, st.sampled_from(["jumps", "diagonal", "uniform"]), st.booleans())
@few
def test_links_lie_inside_their_sentences(pairs, position, agree):
    source, target = zip(*pairs, strict=True)
    links = align(source, target, position=position, agree=agree, symmetrize="union")
    assert len(links) == len(pairs)
    for k, (one, two) in enumerate(pairs):
        i, j = links[k]
        assert all(0 <= x < len(one) for x in i) and all(0 <= x < len(two) for x in j)


@given(texts)
@few
def test_model_1_never_gets_less_likely(pairs):
    model = Model(*encode(pairs), Settings(warmup=6, iterations=0))
    model.train()
    for direction in model.directions:
        assert np.all(np.diff(direction.loglik) >= -1e-3 * max(1, abs(direction.loglik[0])))


@pytest.mark.parametrize("position", ["jumps", "diagonal"])
def test_every_model_gets_likelier(position):
    source, target, _ = invented(200)
    model = Model(*encode(zip(source, target, strict=True)), Settings(position, agree=False, iterations=6))
    model.train()
    for direction in model.directions:
        assert np.all(np.diff(direction.loglik) > -1e-3 * abs(direction.loglik[0]))


def test_posteriors_of_jumps_are_those_of_all_paths():
    """Forward-backward against the sum over every way to link 3 words to 2 words or to none."""
    rng = np.random.default_rng(0)
    jumps = Jumps.start().refit(rng.random(Jumps.start().jump.size + Jumps.start().first.size))
    emission, none = rng.random((3, 1, 2), np.float32), rng.random((3, 1), np.float32)
    lengths = np.array([2]), np.array([3])
    found = jumps.posterior(Weights(emission.copy(), none.copy(), lengths))
    total, expected, middle = 0.0, np.zeros((3, 2)), len(jumps.jump) // 2
    first = jumps.first[:2] / jumps.first[:2].sum()
    move = np.array([[jumps.jump[middle + b - a] for b in (0, 1)] for a in (0, 1)])
    move /= move.sum(1, keepdims=True)
    for start, path in itertools.product((0, 1), itertools.product((0, 1, None), repeat=3)):
        here, chance = start, first[start]
        for step, link in enumerate(path):
            if step == 0 and link not in (start, None):
                chance = 0
            if link is not None and step:
                chance, here = chance * move[here, link], link
            chance *= none[step, 0] if link is None else emission[step, 0, link]
        total += chance
        for step, link in enumerate(path):
            if link is not None:
                expected[step, link] += chance
    assert np.allclose(found.words[:, 0], expected / total, atol=1e-5)
    assert found.loglik == pytest.approx(np.log(total), abs=1e-4)


def test_tension_grows_on_the_diagonal_and_falls_off_it():
    close = np.eye(6, dtype=np.float32)[:, None, :] + 1e-3
    none, lengths = np.full((6, 1), 1e-3, np.float32), (np.array([6]), np.array([6]))
    for weights, grows in ((close, True), (close[::-1].copy(), False)):
        start = Diagonal(4.0)
        events = start.posterior(Weights(weights, none, lengths)).events
        assert (start.refit(events).tension > 4.0) is grows


# languages made for the purpose


def test_a_text_and_itself_align_on_the_diagonal():
    source, _, _ = invented(120, swap=0)
    lines = [list(dict.fromkeys(line)) for line in source]
    links = align(lines, lines)
    for k, line in enumerate(lines):
        assert [x.tolist() for x in links[k]] == [list(range(len(line)))] * 2


@pytest.mark.parametrize("position", ["jumps", "diagonal"])
def test_exchanged_words_find_their_translations(position):
    source, target, gold = invented(600)
    assert agreement(align(source, target, position=position), gold) > 0.93
    found = translations(zip(source, target, strict=True), settings=Settings(position))
    pairs = found.dictionary()
    assert len(pairs) >= 50
    assert all(one[1:] == two[1:] for one, two in pairs)


def test_learning_from_agreement_helps():
    source, target, gold = invented(150, size=200, swap=0.5)
    scores = [agreement(align(source, target, agree=agree), gold) for agree in (True, False)]
    assert scores[0] > scores[1] + 0.01


def test_exchanged_sides_transpose_the_links():
    source, target, _ = invented(150)
    there = align(source, target, symmetrize="intersection")
    assert same(there, align(target, source, symmetrize="intersection").transpose())


def test_batch_size_does_not_matter(monkeypatch):
    source, target, _ = invented(150)
    whole = align(source, target)
    assert agreement(whole, align(source, target, batch_cells=300)) > 0.998
    counts = [
        translations(zip(source, target, strict=True), settings=Settings(batch_cells=cells))
        for cells in (300, 1 << 17)
    ]
    assert dict_of(counts[0]) == pytest.approx(dict_of(counts[1]), rel=1e-3, abs=2e-2)
    monkeypatch.setattr("calque.data.aligner._KEEP_BYTES", 0)
    assert same(align(source, target), whole)


def dict_of(found):
    return {(one, two): count for one, two, count in found if count > 1}


def test_the_same_text_gives_the_same_links():
    source, target, _ = invented(100)
    assert same(align(source, target), align(source, target))


def test_a_short_table_keeps_the_strong_pairs(capsys):
    source, target, gold = invented(300)
    full = Model(*encode(zip(source, target, strict=True)), Settings()).table
    links = align(source, target, table_limit=len(full) // 3)
    assert "weak word pairs dropped" in capsys.readouterr().err
    assert agreement(links, gold) > 0.85


def test_the_table_is_merged_in_runs(monkeypatch):
    source, target, _ = invented(100)
    sides = encode(zip(source, target, strict=True))
    groups = batches(*sides, cells=500, longest=100)
    whole = Cooccurrence(*sides, groups, 10**6, 0)
    monkeypatch.setattr("calque.data.cooccurrence._PENDING", 50)
    assert np.array_equal(Cooccurrence(*sides, groups, 10**6, 0).codes, whole.codes)
    met = {(a, b) for one, two in zip(source, target, strict=True) for a in one for b in two}
    assert len(whole) == len(met)


# what users bring


def test_empty_sentences_have_no_links(capsys):
    links = align([["a"], [], ["b"], ["a", "b"]], [["x"], ["y"], [], ["x", "y"]])
    assert list(links.lines()) == ["0-0", "", "", "0-0 1-1"]
    assert "2 pairs left out" in capsys.readouterr().err


def test_sentences_of_one_word():
    links = align([["a"], ["b"], ["a"]], [["x"], ["y"], ["x"]])
    assert list(links.lines()) == ["0-0"] * 3


def test_long_sentences_are_left_out_and_said(capsys):
    links = align([["a"] * 9, ["a", "b"]], [["x"], ["x", "y"]], longest=5)
    assert next(links.lines()) == ""
    assert "1 pairs left out, empty or over 5 words" in capsys.readouterr().err


@pytest.mark.parametrize(
    "source, target", [([["a"]], [["x"], ["y"]]), ([], [["x"]]), ([], []), ([[]], [["x"]])]
)
def test_unfit_text_is_refused(source, target):
    with pytest.raises(DataError):
        align(source, target)


def test_unfit_settings_are_refused():
    for settings_ in (dict(none=0.0), dict(longest=0), dict(warmup=0, iterations=0)):
        with pytest.raises(ConfigError):
            align([["a"]], [["x"]], **settings_)


def test_words():
    assert words("Don't  stop, 12.5 m² ŵ’a!") == ["Don't", "stop", ",", "12", ".", "5", "m", "²", "ŵ’a", "!"]
    assert words(" \n") == []


def corpus(source, target):
    sides = zip(source, target, strict=True)
    return Corpus.of(
        Example(str(k), {"eng_Latn": " ".join(one), "nya_Latn": " ".join(two)})
        for k, (one, two) in enumerate(sides)
    )


def test_lexicon_of_a_corpus():
    source, target, _ = invented(200)
    source[0][0], source[1] = source[0][0].upper(), [word.upper() for word in source[1]]
    found = lexicon(corpus(source, target), lowercase=True, units="blanks")
    assert np.all(np.diff(found.count) <= 0) and found.count.min() >= 0.1
    assert np.all((found.probability > 0) & (found.probability <= 1 + 1e-6))
    assert not any(word != word.lower() for word in found.source)
    assert found.notes["source"] == "eng_Latn" and found.notes["pairs"] == 200
    back = lexicon(corpus(source, target), source="nya_Latn", lowercase=True, units="blanks")
    assert back.notes["target"] == "eng_Latn"
    turned = {(two, one): count for one, two, count in back if count > 1}
    assert turned == pytest.approx(dict_of(found), rel=1e-3, abs=2e-2)
    assert sum(found.count) <= sum(map(len, target))


def test_lexicon_needs_two_sides():
    with pytest.raises(ConfigError, match="two languages"):
        lexicon(corpus([["a"]], [["x"]]).only("eng_Latn"))
    with pytest.raises(ConfigError, match="no side"):
        lexicon(corpus([["a"]], [["x"]]), source="deu_Latn")


def test_lexicon_comes_back_from_disk(tmp_path):
    source, target, _ = invented(80)
    found = translations(zip(source, target, strict=True))
    found.save(tmp_path / "out")
    again = Lexicon.load(tmp_path / "out")
    assert (again.source, again.target) == (found.source, found.target)
    assert np.allclose(again.count, found.count, rtol=1e-8)
    assert np.allclose(again.probability, found.probability, rtol=1e-5)
    assert again.notes["pairs"] == 80 and again.dictionary() == found.dictionary()
    assert len(Lexicon.load(tmp_path / "out" / "lexicon.tsv")) == len(found) == len(list(found))


def test_unfit_lexicon_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="no lexicon"):
        Lexicon.load(tmp_path)
    (tmp_path / "lexicon.tsv").write_text("a\tx\t-0.1\t3\nb\ty\n")
    with pytest.raises(DataError, match=r"lexicon.tsv:2"):
        Lexicon.load(tmp_path)
    with pytest.raises(DataError, match="different lengths"):
        Lexicon(("a",), (), np.zeros(1), np.zeros(1))
    with pytest.raises(DataError, match="tab"):
        Lexicon(("a\tb",), ("x",), np.ones(1), np.ones(1)).save(tmp_path / "out")


def test_dictionary_takes_mutual_best_pairs():
    found = Lexicon(
        ("the", "dog", "the", "dog"), ("das", "Hund", "der", "das"), np.array([9, 5, 4, 1.0]), np.full(4, 0.5)
    )
    assert found.dictionary() == [("the", "das"), ("dog", "Hund")]
    assert found.dictionary(min_count=6) == [("the", "das")]
    assert found.dictionary(min_probability=0.6) == []
