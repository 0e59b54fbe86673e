import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import tiny as makers
from tokenizers import Tokenizer, models

from calque.errors import DataError, ModelError
from calque.evaluate import choices, seq2seq
from calque.evaluate.benchmark import Prompt
from calque.evaluate.choices import Scored, Trie, choose, likelihoods, takes_trie
from calque.evaluate.lm import Reader
from calque.model.checkpoint import Checkpoint

from .conftest import byte_level, save_model

PROMPTS = [
    Prompt("Pachiyambi Mulungu adalenga", (" kumwamba", " dziko lapansi", " nyanja")),
    Prompt("Pachiyambi Mulungu anati", (" kuwale", " mdima")),
    Prompt("Ng'ombe zinayi", (" zinayenda", " zinagona", " zinayenda m'mudzi")),
]


@pytest.fixture(scope="module")
def reader(tiny):
    return Reader.open("m", tiny, torch.float32)


def plainly(reader, ids, first):
    with torch.inference_mode():
        logs = reader.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(logs[n - 1, ids[n]]) for n in range(first, len(ids)))


def test_scores_are_those_of_reading_each_sequence_alone(reader):
    answers = choose(reader, PROMPTS, normalise="none", start=True)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        for choice, score in zip(prompt.choices, answer.scores, strict=True):
            alone = reader.tokens.encode(prompt.text)
            whole = reader.tokens.encode(prompt.text + choice)
            assert whole[: len(alone)] == alone
            expected = plainly(reader, [reader.start, *whole], 1 + len(alone))
            assert score == pytest.approx(expected, abs=1e-4)
        assert answer.choice == max(range(len(answer.scores)), key=answer.scores.__getitem__)
        assert answer.text == prompt.choices[answer.choice].strip()


@pytest.mark.parametrize(
    "name", [n for n, (_, c, _) in makers.ARCHITECTURES.items() if c.endswith(("CausalLM", "LMHeadModel"))]
)
def test_every_decoder_gives_the_scores_of_plain_reading(name, tmp_path):
    checkpoint = Checkpoint.at(makers.model(tmp_path, name))
    reader = Reader.open(name, checkpoint, torch.float32)
    ids = [5, 9, 17, 3, 8, 44]
    asked = [Scored((*ids, 7, 9), 6), Scored((*ids, 11), 6), Scored((5, 9, 40, 41), 2)]
    found = likelihoods(reader, asked)
    for one, value in zip(asked, found, strict=True):
        assert value == pytest.approx(plainly(reader, list(one.ids), one.first), abs=1e-3)


def test_llama_reads_a_trie_and_a_sliding_window_does_not(reader, tmp_path, tokenizer):
    assert takes_trie(reader)
    checkpoint = Checkpoint.at(makers.model(tmp_path, "mistral"))
    mistral = Reader.open("s", checkpoint, torch.float32)
    mistral.model.config.sliding_window = 4
    assert not takes_trie(mistral)


def test_rows_of_one_sequence_or_of_all_give_the_same(reader, monkeypatch):
    asked = [
        Scored(tuple(reader.tokens.encode(p.text + c)), 3) for p in PROMPTS for c in p.choices
    ]  # fmt: skip
    together = likelihoods(reader, asked)
    monkeypatch.setattr(choices, "_rows", lambda reader, laid: ([one] for one in laid))
    assert likelihoods(reader, asked) == pytest.approx(together, abs=1e-4)
    monkeypatch.setattr(choices, "takes_trie", lambda reader: False)
    assert likelihoods(reader, asked) == pytest.approx(together, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8))
def test_a_node_sees_its_ancestors_and_itself_only(listed):
    listed = sorted(listed)
    trie, paths = Trie.of(listed)
    assert [[trie.ids[n] for n in path] for path in paths] == listed
    prefixes = {tuple(ids[: n + 1]) for ids in listed for n in range(len(ids))}
    assert len(trie.ids) == len(prefixes)
    mask = trie.mask()
    for path in paths:
        for depth, node in enumerate(path):
            assert trie.depth[node] == depth
            assert set(torch.nonzero(mask[node]).flatten().tolist()) == set(path[: depth + 1])
            assert trie.parent[node] == (path[depth - 1] if depth else -1)


def test_normalisations(reader):
    (plain,) = choose(reader, PROMPTS[:1], normalise="none", start=True)
    (by_bytes,) = choose(reader, PROMPTS[:1], normalise="bytes", start=True)
    (by_tokens,) = choose(reader, PROMPTS[:1], normalise="tokens", start=True)
    (less,) = choose(reader, PROMPTS[:1], normalise="unconditional", start=True)
    for n, choice in enumerate(PROMPTS[0].choices):
        ids = reader.tokens.encode(choice)
        assert by_bytes.scores[n] == pytest.approx(plain.scores[n] / len(choice.encode()), abs=1e-5)
        assert by_tokens.scores[n] == pytest.approx(plain.scores[n] / len(ids), abs=1e-4)
        alone = plainly(reader, [reader.start, *ids], 1)
        assert less.scores[n] == pytest.approx(plain.scores[n] - alone, abs=1e-3)


def test_a_choice_that_joins_the_prompt_is_scored_from_where_the_texts_part(tmp_path):
    """Prompt "ab" and choice "c" where "bc" is one token: the scored part begins at "bc"."""
    vocabulary = {"<s>": 0, "a": 1, "b": 2, "c": 3, "d": 4, "bc": 5}
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocabulary, [("b", "c")])), bos_token="<s>"
    )
    reader = Reader.open("m", save_model(tmp_path, tokenizer), torch.float32)
    asked, _ = choices.sequences(reader, Prompt("ab", ("c", "d")), True)
    assert asked == [Scored((0, 1, 5), 2), Scored((0, 1, 2, 4), 2)]


def test_every_order_of_prompts_gives_the_same_answers(reader):
    found = {
        p: a for p, a in zip(PROMPTS, choose(reader, PROMPTS, normalise="none", start=True), strict=True)
    }
    for order in itertools.permutations(PROMPTS):
        for prompt, answer in zip(order, choose(reader, order, normalise="none", start=True), strict=True):
            assert answer.choice == found[prompt].choice
            assert answer.scores == pytest.approx(found[prompt].scores, abs=1e-4)


def test_an_empty_choice_is_refused(reader):
    with pytest.raises(DataError, match="adds nothing to the prompt"):
        choose(reader, [Prompt("Mulungu", ("", " anati"))], normalise="none", start=True)


def test_without_start_token_and_prompt_there_is_nothing_to_predict_from(tmp_path):
    reader = Reader.open("m", save_model(tmp_path, byte_level(bos=None), bos_token_id=None), torch.float32)
    with pytest.raises(DataError, match="nothing to predict a choice from"):
        choose(reader, [Prompt("", ("a", "b"))], normalise="none", start=True)


def test_a_model_without_numbers_is_refused(tmp_path, tokenizer):
    reader = Reader.open("bad", save_model(tmp_path, tokenizer), torch.float32)
    with torch.no_grad():
        reader.model.model.norm.weight.fill_(math.nan)
    with pytest.raises(ModelError, match="'bad': the probability of a choice is no number"):
        choose(reader, PROMPTS, normalise="none", start=True)


def between_plainly(reader, prompt, choice):
    """One pair by itself: the mean loss that transformers gives, times the tokens of the choice."""
    source, target = (reader.tokens.backend.encode(text).ids for text in (prompt, choice.strip()))
    assert source[-1] == target[-1] == reader.tokens.special["eos"]
    with torch.inference_mode():
        out = reader.model(input_ids=torch.tensor([source]), labels=torch.tensor([target]))
    return -float(out.loss) * len(target), len(target)


def test_encoder_decoders_read_the_prompt_and_choose_what_comes_out(between):
    pairs = [(p.text, c) for p in PROMPTS for c in p.choices]
    expected = [between_plainly(between, *pair) for pair in pairs]
    for size in (1, 40, 4096):
        found, counts = seq2seq.likelihoods(between, pairs, batch_tokens=size)
        assert found == pytest.approx([value for value, _ in expected], abs=1e-3)
        assert counts == [count for _, count in expected]
    (plain,) = choose(between, PROMPTS[:1], normalise="none", start=True)
    (by_tokens,) = choose(between, PROMPTS[:1], normalise="tokens", start=True)
    (less,) = choose(between, PROMPTS[:1], normalise="unconditional", start=True)
    assert plain.choice == max(range(3), key=lambda n: expected[n][0])
    for n, choice in enumerate(PROMPTS[0].choices):
        assert by_tokens.scores[n] == pytest.approx(expected[n][0] / expected[n][1], abs=1e-3)
        alone, _ = between_plainly(between, "", choice)
        assert less.scores[n] == pytest.approx(expected[n][0] - alone, abs=1e-3)


def test_encoder_decoders_have_no_bits_of_a_text(between):
    with pytest.raises(ModelError, match="'m' is an encoder-decoder"):
        between.surprise(torch.tensor([[5, 6, 7]]), torch.tensor([[True, True]]))


def test_encoder_decoders_refuse_choices_without_text(between):
    with pytest.raises(DataError, match="a choice without text"):
        choose(between, [Prompt("Mulungu", (" ", " anati"))], normalise="none", start=True)
