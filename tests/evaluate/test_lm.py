import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from calque.data.corpus import Corpus
from calque.data.example import Example
from calque.errors import ConfigError, DataError, ModelError
from calque.evaluate import lm as module
from calque.evaluate.lm import Window, batches, lm
from calque.model.checkpoint import Checkpoint

from .conftest import VERSES, byte_level, corpus, save_model


def value(table, metric, item, system="m"):
    (row,) = table.where(metric=metric, item=item, system=system).rows()
    return row["value"]


def one(text, language="nya_Latn"):
    return Corpus.of([Example("1", {language: text}, group="doc")])


def test_bits_are_those_of_a_plain_forward_pass(tiny, tokenizer):
    text = VERSES[0]
    table = lm({"m": tiny}, {"t": one(text)}, dtype="float32")
    ids = torch.tensor([[0, *tokenizer.encode(text, add_special_tokens=False)]])
    with torch.inference_mode():
        logs = tiny.model()(ids).logits.double().log_softmax(-1)
    expected = -logs[0, :-1].gather(1, ids[0, 1:, None]).sum() / math.log(2)
    assert value(table, "bits", "doc") == pytest.approx(float(expected), rel=1e-6)
    assert value(table, "bytes", "doc") == len(text.encode())
    assert value(table, "tokens", "doc") == ids.shape[1] - 1
    assert value(table, "words", "doc") == 7
    assert value(table, "lossless", "doc") == 1


def test_the_sliding_window_is_the_plain_loop_over_tokens(tiny, tokenizer):
    text = " ".join(VERSES)
    length, overlap = 24, 6
    table = lm({"m": tiny}, {"t": one(text)}, length=length, overlap=overlap / length, dtype="float32")
    ids = [0, *tokenizer.encode(text, add_special_tokens=False)]
    model, expected, begin, limit = tiny.model(), 0.0, 0, length + 1
    for place in range(1, len(ids)):
        if place == limit:
            begin, limit = place - overlap, place - overlap + length + 1
        with torch.inference_mode():
            logits = model(torch.tensor([ids[begin:place]])).logits[0, -1]
        expected -= float(logits.double().log_softmax(-1)[ids[place]]) / math.log(2)
    assert value(table, "bits", "doc") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("batch_tokens", [8, 100, 100_000])
def test_the_batch_size_changes_nothing(tiny, books, batch_tokens):
    reference = lm({"m": tiny}, {"t": books}, length=32, dtype="float32")
    table = lm({"m": tiny}, {"t": books}, length=32, batch_tokens=batch_tokens, dtype="float32")
    for row, other in zip(table.rows(), reference.rows(), strict=True):
        assert row["value"] == pytest.approx(other["value"], rel=1e-6)
        assert {**row, "value": 0} == {**other, "value": 0}


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=6),
    st.integers(8, 40),
    st.floats(0, 0.9),
    st.integers(8, 400),
)
def test_every_token_is_scored_exactly_once_within_the_window(sizes, length, share, batch_tokens):
    overlap = int(length * share)
    seen = {(i, p): 0 for i, size in enumerate(sizes) for p in range(1, size)}
    for batch in batches(sizes, length, overlap, batch_tokens):
        longest = max(w.stop - w.begin for w in batch)
        assert len(batch) == 1 or len(batch) * longest <= batch_tokens
        for w in batch:
            assert w.stop - w.begin <= length + 1 and w.begin < w.first
            assert w.begin == 0 or w.first - w.begin == max(1, overlap)
            for place in range(w.first, w.stop):
                seen[w.index, place] += 1
    assert set(seen.values()) <= {1}
    assert Window(0, 0, 1, 2) in list(module.windows(0, 2, length, overlap))


def test_equal_logits_everywhere_cost_log2_of_the_vocabulary(tmp_path, tokenizer):
    save_model(tmp_path, tokenizer)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.embed_tokens.weight"].zero_()
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    table = lm({"m": Checkpoint.at(tmp_path)}, {"t": corpus()}, dtype="float32")
    (bits,) = table.measure("bits/tokens")
    assert bits.estimate.value == pytest.approx(math.log2(len(tokenizer)), rel=1e-6)


def test_without_a_start_token_the_first_one_costs_log2_of_the_vocabulary(tmp_path):
    bare = byte_level(bos=None)
    checkpoint = save_model(tmp_path, bare, bos_token_id=None)
    text = VERSES[1]
    table = lm({"m": checkpoint}, {"t": one(text)}, dtype="float32")
    ids = torch.tensor([bare.encode(text, add_special_tokens=False)])
    with torch.inference_mode():
        logs = checkpoint.model()(ids).logits.double().log_softmax(-1)
    rest = -logs[0, :-1].gather(1, ids[0, 1:, None]).sum() / math.log(2)
    assert value(table, "bits", "doc") == pytest.approx(float(rest) + math.log2(len(bare)), rel=1e-6)
    assert "start:none" in next(table.rows())["signature"]


def test_what_follows_the_head_is_not_forgotten(tmp_path, tokenizer, capsys):
    import transformers

    config = transformers.Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0,
        max_position_embeddings=64, query_pre_attn_scalar=8, sliding_window=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Gemma2ForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(30)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    table = lm({"m": Checkpoint.at(tmp_path)}, {"t": one(VERSES[0])}, dtype="float32")
    ids = torch.tensor([[0, *tokenizer.encode(VERSES[0], add_special_tokens=False)]])
    with torch.inference_mode():
        logs = model.eval()(ids).logits.double().log_softmax(-1)
    expected = -logs[0, :-1].gather(1, ids[0, 1:, None]).sum() / math.log(2)
    assert value(table, "bits", "doc") == pytest.approx(float(expected), rel=1e-5)
    assert "logits are taken whole" in capsys.readouterr().err


def test_learned_positions_and_another_architecture(tmp_path, tokenizer):
    torch.manual_seed(1)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=32,
            n_embd=32,
            n_layer=1,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    table = lm({"m": Checkpoint.at(tmp_path)}, {"t": corpus()}, dtype="float32")
    assert "|length:32|" in next(table.rows())["signature"]
    again = lm({"m": Checkpoint.at(tmp_path)}, {"t": corpus()}, dtype="float32", batch_tokens=64)
    for row, other in zip(table.rows(), again.rows(), strict=True):
        assert row["value"] == pytest.approx(other["value"], rel=1e-6)


def test_bfloat16_is_close_and_said(tiny, books):
    exact, rounded = (lm({"m": tiny}, {"t": books}, dtype=d) for d in ("float32", "bfloat16"))
    (a,), (b,) = exact.measure("bits/bytes"), rounded.measure("bits/bytes")
    assert a.estimate.value != b.estimate.value
    assert a.estimate.value == pytest.approx(b.estimate.value, rel=0.01)
    assert "|dtype:bfloat16|" in b.signatures[0] and "|dtype:float32|" in a.signatures[0]


def test_both_sides_of_a_parallel_text_and_several_systems(tiny, books):
    pairs = Corpus.of(
        Example(str(i), {"eng_Latn": f"word {i}", "nya_Latn": VERSES[i]}, group=f"g{i % 2}") for i in range(4)
    )
    table = lm({"a": tiny, "b": tiny}, {"pairs": pairs, "books": books}, max_bytes=1800)
    assert table.values("task") == ["lm/pairs", "lm/books"]
    assert table.values("language") == ["eng_Latn", "nya_Latn"]
    assert all(e.estimate.value == pytest.approx(1.0) for e in table.compare("a", "bits/bytes"))
    (sizes,) = table.where(system="a", task="lm/books").measure("bytes")
    assert sizes.estimate.value * sizes.estimate.units <= 1800 and 1 < sizes.estimate.units < 4


def test_a_killed_call_goes_on_after_the_last_text(tiny, books, tmp_path, monkeypatch):
    whole = lm({"a": tiny, "b": tiny}, {"t": books}, dtype="float32")
    real, calls = module._score, []

    def dies_second(reader, *rest):
        calls.append(reader.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(reader, *rest)

    monkeypatch.setattr(module, "_score", dies_second)
    with pytest.raises(KeyboardInterrupt):
        lm({"a": tiny, "b": tiny}, {"t": books}, dtype="float32", work=tmp_path)
    resumed = lm({"a": tiny, "b": tiny}, {"t": books}, dtype="float32", work=tmp_path)
    assert calls == ["a", "b", "b"]
    assert resumed.arrow.equals(whole.arrow)
    lm({"a": tiny, "b": tiny}, {"t": books}, dtype="float32", length=16, work=tmp_path)
    assert calls == ["a", "b", "b", "a", "b"]


def test_a_tokenizer_that_loses_text_is_found_out(tmp_path, capsys):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<s>": 0, "<unk>": 1, "Mulungu": 2, "anati": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    lossy = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")
    table = lm({"m": save_model(tmp_path, lossy)}, {"t": one("Mulungu anati Kuwale")})
    assert value(table, "lossless", "doc") == 0
    assert "1 of 1 documents do not come back" in capsys.readouterr().err


def test_what_can_not_be_scored_is_refused(tmp_path, tokenizer, tiny, books):
    with pytest.raises(ConfigError, match="no system"):
        lm({}, {"t": books})
    with pytest.raises(DataError, match="no text"):
        lm({"m": tiny}, {})
    save_model(tmp_path, tokenizer)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"system 'm': the probability of 'BOOK0' is no number"):
        lm({"m": Checkpoint.at(tmp_path)}, {"t": books})


@pytest.mark.slow
@pytest.mark.asset("smollm2-135m")
@pytest.mark.asset("kolibri")
def test_the_english_model_reads_english_better_than_chichewa():
    both = Corpus.open("kolibri:eng_Latn|nya_Latn")
    table = lm({"base": Checkpoint.open("smollm2-135m")}, {"messages": both}, max_bytes=18000)
    english, chichewa = (
        next(iter(table.where(language=code).measure("bits/bytes"))).estimate.value
        for code in ("eng_Latn", "nya_Latn")
    )
    assert 0.8 < english < 2.5 < chichewa < 5.5
