import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from calque.data.corpus import Corpus
from calque.data.example import Example
from calque.errors import ConfigError, ModelError
from calque.evaluate.generation import beginning, generation, repetition
from calque.model.checkpoint import Checkpoint

from .conftest import VERSES, corpus, save_model

FAST = {"characters": 40, "timed_tokens": 3, "sample_characters": 30, "dtype": "float32"}


def values(table, **where):
    return {row["metric"]: row["value"] for row in table.where(**where).rows()}


def output(table, metric, **where):
    (row,) = table.where(metric=metric, **where).rows()
    return row["output"]


def test_rows_say_what_was_written_and_how_long_it_takes(tiny, tokenizer):
    table = generation({"m": tiny}, {"t": corpus()}, **FAST)
    assert table.values("item") == ["BOOK0", "BOOK2"]
    assert table.values("task") == ["generation/t"]
    found = values(table, item="BOOK0")
    assert found["characters"] == 40 and found["seconds"] > 0
    assert found["tokens"] == len(tokenizer.encode(VERSES[0][:40], add_special_tokens=False))
    prompt = output(table, "prompt_characters", item="BOOK0")
    assert prompt == f"{VERSES[0]} 0"  # eight words
    assert len(output(table, "sample_characters", item="BOOK0")) == found["sample_characters"] == 30
    assert 0 <= found["repetition"] <= 1
    signature = next(table.rows())["signature"]
    assert "temperature:0.7" in signature and "threads:" in signature and "text:" in signature


def test_samples_are_the_same_again_and_others_under_another_seed(tiny):
    first, again, other = (generation({"m": tiny}, {"t": corpus()}, seed=s, **FAST) for s in (1, 1, 2))
    texts = [output(t, "sample_characters", item="BOOK0") for t in (first, again, other)]
    assert texts[0] == texts[1] != texts[2]


def test_greedy_samples_are_the_likeliest_tokens_and_no_special_one(tiny, tokenizer):
    table = generation({"m": tiny}, {"t": corpus()}, temperature=0, **FAST)
    prompt = output(table, "prompt_characters", item="BOOK0")
    ids = [0, *tokenizer.encode(prompt, add_special_tokens=False)]
    start, model = len(ids), tiny.model()
    while len(tokenizer.decode(ids[start:])) <= 30:
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0, -1]
        ids.append(1 + int(logits[1:].argmax()))
    whole = tokenizer.decode(ids)
    assert whole[len(tokenizer.decode(ids[:start])) :][:30] == output(
        table, "sample_characters", item="BOOK0"
    )


def test_a_full_context_ends_a_sample(tmp_path, tokenizer):
    short = save_model(tmp_path, tokenizer, max_position_embeddings=64)
    found = values(
        generation(
            {"m": short}, {"t": corpus()}, prompts=1, characters=20, sample_characters=500, timed_tokens=1
        )
    )
    assert found["sample_characters"] < 500 and found["sample_tokens"] < 64


def test_samples_can_be_left_out(tiny):
    table = generation({"m": tiny}, {"t": corpus()}, characters=9, timed_tokens=1, sample_characters=0)
    assert table.values("metric") == ["characters", "tokens", "seconds"]


def test_prompts_begin_documents_whatever_the_script():
    assert beginning("  Ng'ombe  zinayi\nzinayenda m'mudzi.", "nya_Latn", 3) == "Ng'ombe  zinayi\nzinayenda"
    assert beginning("你好吗我很好谢谢", "zho_Hans", 2) == "你好吗我很好"
    assert beginning("a", "nya_Latn", 5) == "a"


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_repetition_is_a_share_and_doubling_a_text_raises_it(words):
    assert 0 <= repetition(words) < 1
    assert repetition(words * 2) >= repetition(words)


def test_repetition_of_known_texts():
    assert repetition(["a", "b", "c", "d", "e", "f", "g", "h"]) == 0
    assert repetition(["Ndipo", "anati,", "ndipo", "anati;", "ndipo"]) == pytest.approx(2 / 4)
    assert repetition(["ndipo"] * 101) == pytest.approx(0.99)
    assert repetition(["a"]) == 0


def test_a_broken_model_writes_nothing(tmp_path, tokenizer):
    save_model(tmp_path, tokenizer)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    one = Corpus.of([Example("1", {"nya_Latn": VERSES[0]}, group="d")])
    with pytest.raises(ModelError, match="system 'm': its next-token probabilities are no numbers"):
        generation({"m": Checkpoint.at(tmp_path)}, {"t": one}, **FAST)
    with pytest.raises(ConfigError, match="no system"):
        generation({}, {"t": one})
