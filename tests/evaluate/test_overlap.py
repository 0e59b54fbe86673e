"""BLEU, chrF, chrF++ and TER from summed counts against sacreBLEU's own numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calque import paired
from calque.errors import DataError
from calque.evaluate.measures import MEASURES
from calque.evaluate.overlap import Overlap, components, sentence_score

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/33-bavarian-low-resource-nmt.json").read_text())
SCORES = [case for case in GOLDEN["cases"] if case["kind"] == "scores"]
NAMES = {"bleu": "BLEU", "chrf": "chrF", "chrf++": "chrF++", "ter": "TER"}


def point(overlap, hypotheses):
    return float(MEASURES[overlap.metric].reduce(overlap.counts(hypotheses).sum(axis=0), overlap.names))


@pytest.mark.parametrize("metric", NAMES)
@pytest.mark.parametrize("case", SCORES, ids=lambda case: case.get("note", case["hypotheses"][0][:20]))
def test_corpus_scores_are_those_of_sacrebleu(case, metric):
    references = list(zip(*case["references"], strict=True))
    expected = case["corpus"][NAMES[metric]]
    overlap = Overlap(references, metric)
    assert point(overlap, case["hypotheses"]) == pytest.approx(expected["score"], abs=1e-6)
    assert overlap.signature == f"{metric}|{expected['signature']}"
    if metric == "bleu":
        for tokenize, name in (("char", "BLEU_char"), ("none", "BLEU_none")):
            found = Overlap(references, "bleu", tokenize=tokenize)
            assert point(found, case["hypotheses"]) == pytest.approx(case["corpus"][name]["score"], abs=1e-6)


@pytest.mark.parametrize("case", SCORES, ids=lambda case: case.get("note", case["hypotheses"][0][:20]))
def test_sentence_scores_are_those_of_sacrebleu(case):
    references = list(zip(*case["references"], strict=True))
    for text, refs, expected in zip(case["hypotheses"], references, case["sentence"], strict=True):
        counts = components(text, refs, ("bleu", "chrf", "ter"))
        for metric, score in expected.items():
            assert sentence_score(metric, counts) == pytest.approx(score, abs=1e-6), (metric, text)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.text("ab .,é", max_size=12), st.text("ab .,é", max_size=12)), min_size=1, max_size=6
    )
)
def test_any_text_scores_as_with_sacrebleu(pairs):
    from sacrebleu.metrics import BLEU, CHRF, TER

    said, gold = zip(*pairs, strict=True)
    peers = {"bleu": BLEU(force=True), "chrf": CHRF(), "chrf++": CHRF(word_order=2), "ter": TER()}
    for metric, peer in peers.items():
        expected = peer.corpus_score(said, [gold]).score
        assert point(Overlap([[g] for g in gold], metric), said) == pytest.approx(expected, abs=1e-6), metric


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[st.text("ab (,ñ𝒳中", max_size=14)] * 3), min_size=1, max_size=5))
def test_the_best_of_several_references_is_taken_as_by_sacrebleu(triples):
    from sacrebleu.metrics import CHRF

    said, *sets = zip(*triples, strict=True)
    for metric, peer in (("chrf", CHRF()), ("chrf++", CHRF(word_order=2))):
        overlap = Overlap(list(zip(*sets, strict=True)), metric)
        assert point(overlap, said) == pytest.approx(peer.corpus_score(said, sets).score, abs=1e-9)
        expected = np.array(peer._extract_corpus_statistics(said, sets)).reshape(len(said), -1, 3)
        assert (overlap.counts(said).reshape(len(said), 3, -1) == expected.transpose(0, 2, 1)).all()


def test_resampled_sums_score_as_resampled_text():
    from sacrebleu.metrics import BLEU, CHRF

    case = SCORES[1]
    drawn = np.random.default_rng(0).integers(0, 8, size=(5, 8))
    for metric, peer in (("bleu", BLEU(force=True)), ("chrf", CHRF())):
        overlap = Overlap([[r] for r in case["references"][0]], metric)
        sums_RS = overlap.counts(case["hypotheses"])[drawn].sum(axis=1)
        for found, lines in zip(MEASURES[metric].reduce(sums_RS, overlap.names), drawn, strict=True):
            text = [case["hypotheses"][i] for i in lines]
            gold = [case["references"][0][i] for i in lines]
            assert found == pytest.approx(peer.corpus_score(text, [gold]).score, abs=1e-6)


PAIRED = [case for case in GOLDEN["cases"] if case["kind"] == "paired_test"]
KEYS = {"bleu": "BLEU", "chrf": "chrF2", "ter": "TER"}


@pytest.mark.parametrize("metric", KEYS)
@pytest.mark.parametrize("case", PAIRED, ids=lambda case: case["test"])
def test_paired_tests_against_those_of_sacrebleu(case, metric):
    """All 256 swaps, and resamples of ours, give sacreBLEU's p-values by its rules; ours differ as told.

    Its randomisation does not count trials that differ as much as the systems do; ours counts them. Its
    bootstrap subtracts the mean of absolute differences, which is too bold where a difference is small.
    """
    overlap = Overlap([[text] for text in case["references"]], metric)
    counts = {name: overlap.counts(texts) for name, texts in case["systems"].items()}
    base, rng = counts[case["baseline"]], np.random.default_rng(0)

    def score(sums):
        return MEASURES[metric].reduce(sums, overlap.names)

    for expected in case["results"][KEYS[metric]]:
        system = counts[expected["system"]]
        assert float(score(system.sum(axis=0))) == pytest.approx(expected["score"], abs=1e-6)
        if expected["p_value"] is None:
            continue
        real = abs(score(system.sum(axis=0)) - score(base.sum(axis=0)))
        if case["test"] == "paired bootstrap":
            drawn = rng.integers(0, 8, size=(4000, 8))
            found = [score(side[drawn].sum(axis=1)) for side in (system, base)]
            apart = np.abs(found[0] - found[1])
            assert np.mean(apart - apart.mean() > real) == pytest.approx(expected["p_value"], abs=0.02)
            half = np.diff(np.quantile(found[0], [0.025, 0.975]))[0] / 2
            assert half == pytest.approx(expected["ci"], rel=0.08)
            continue
        keeps = (np.arange(256)[:, None] >> np.arange(8)) & 1
        apart = np.abs(
            score(keeps @ system + (1 - keeps) @ base) - score(keeps @ base + (1 - keeps) @ system)
        )
        assert np.mean(apart > real + 1e-9) == pytest.approx(expected["p_value"], abs=0.02)
        ours = paired.randomisation(system, base, score)
        assert ours == pytest.approx(np.mean(apart > real - 1e-9), abs=0.02)
        assert ours >= expected["p_value"] - 0.02


def test_sentences_may_have_more_or_fewer_references():
    overlap = Overlap([["a b c d"], ["a b", "a b c d e"]], "chrf")
    assert point(overlap, ["a b c d", "a b c d e"]) == pytest.approx(100)
    assert "nrefs:var" in overlap.signature


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Overlap([], "chrf"), "no sentence"),
        (lambda: Overlap([["a"], []], "chrf"), "sentence 1: expected a list of one or more references"),
        (lambda: Overlap(["a"], "chrf"), "sentence 0: expected a list"),
        (lambda: Overlap([[None]], "chrf"), "sentence 0: expected a list"),
        (lambda: Overlap([["a"]], "chrf").counts(["a", "b"]), "2 hypotheses for 1 sentences"),
        (lambda: Overlap([["a"]], "chrf").counts([None]), "hypothesis 0 is None"),
        (lambda: components("a", []), "sentence 0"),
    ],
)
def test_what_can_not_be_scored_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
