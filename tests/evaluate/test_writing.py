import pytest
import torch

from calque.errors import ConfigError
from calque.evaluate import writing
from calque.evaluate.benchmark import Prompt
from calque.evaluate.lm import Reader

from .conftest import save_model

TEXTS = [
    "Mulungu",
    "Pachiyambi Mulungu adalenga kumwamba",
    "Ng'ombe",
    "mdima unali pamwamba pa nyanja; mwana",
]
SETTINGS = {"temperature": 0.0, "seed": 0, "start": True, "batch_tokens": 4096}


@pytest.fixture(scope="module")
def reader(tiny):
    return Reader.open("m", tiny, torch.float32)


def written(reader, prompts, **changes):
    return dict(writing.write(reader, prompts, **{**SETTINGS, **changes}))


def greedily(reader, text, limit):
    ids = [reader.start, *reader.tokens.encode(text)]
    given = len(ids)
    with torch.inference_mode():
        for _ in range(limit):
            logits = reader.model(torch.tensor([ids])).logits[0, -1, : len(reader.tokens)]
            ids.append(int(logits.argmax()))
    return ids[:given], ids[given:]


def text_of(reader, given, ids):
    return reader.tokens.decode([*given, *ids])[len(reader.tokens.decode(given)) :]


def test_greedy_answers_are_the_likeliest_tokens_one_after_another(reader):
    found = written(reader, [Prompt(text, max_tokens=9) for text in TEXTS])
    for n, text in enumerate(TEXTS):
        assert found[n].text == text_of(reader, *greedily(reader, text, 9))
        assert found[n].value == {"truncated": True}


def test_encoder_decoders_write_after_the_prompt_they_have_read(between):
    found = written(between, [Prompt(text, max_tokens=9) for text in TEXTS])
    model, end = between.model, between.tokens.special["eos"]
    for n, text in enumerate(TEXTS):
        source = torch.tensor([between.tokens.backend.encode(text).ids])
        ids = [model.config.decoder_start_token_id]
        with torch.inference_mode():
            while len(ids) < 10 and end not in ids:
                logits = model(input_ids=source, decoder_input_ids=torch.tensor([ids])).logits[0, -1]
                ids.append(int(logits[: len(between.tokens)].argmax()))
        assert found[n].text == between.tokens.decode([i for i in ids[1:] if i != end])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_batch_size_gives_the_same(reader, temperature):
    prompts = [Prompt(text, max_tokens=4 + n) for n, text in enumerate(TEXTS)]
    one = written(reader, prompts, batch_tokens=8, temperature=temperature)
    assert written(reader, prompts, batch_tokens=4096, temperature=temperature) == one
    assert written(reader, prompts, batch_tokens=60, temperature=temperature) == one


def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(reader):
    (whole,) = written(reader, [Prompt(TEXTS[1], max_tokens=12)]).values()
    stop = whole.text[5:7]
    (cut,) = written(reader, [Prompt(TEXTS[1], max_tokens=12, stop=(stop,))]).values()
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.value == {"truncated": False}


def test_an_end_token_ends_the_answer(tmp_path, tokenizer):
    reader = Reader.open("m", save_model(tmp_path, tokenizer), torch.float32)
    given, ids = greedily(reader, TEXTS[0], 8)
    place = next(n for n in range(2, 8) if ids[n] not in ids[:n])
    reader.model.generation_config.eos_token_id = ids[place]
    (cut,) = written(reader, [Prompt(TEXTS[0], max_tokens=8)]).values()
    assert cut.text == text_of(reader, given, ids[:place])
    assert cut.value == {"truncated": False}


def test_samples_differ_by_seed_and_only_by_it(reader):
    prompt = [Prompt(TEXTS[0], max_tokens=16)]
    first = written(reader, prompt, temperature=1.0, seed=1)[0].text
    assert first == written(reader, prompt, temperature=1.0, seed=1)[0].text
    assert first != written(reader, prompt, temperature=1.0, seed=2)[0].text


def test_gumbel_noise_samples_from_the_softmax():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    noise = writing._Gumbel(0.5, ["a"])
    drawn = torch.stack([noise(torch.zeros(1, 0, dtype=torch.long), logits)[0].argmax() for _ in range(4000)])
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert shares.tolist() == pytest.approx((logits[0] / 0.5).softmax(-1).tolist(), abs=0.03)


def test_a_prompt_beyond_the_context_is_refused(reader):
    with pytest.raises(ConfigError, match=r"a prompt has \d+ tokens, the context of 'm' 128"):
        written(reader, [Prompt("Mulungu " * 200)])


def test_an_answer_stops_where_the_context_does(reader):
    (found,) = written(reader, [Prompt("Mulungu anati " * 12, max_tokens=500)]).values()
    assert 0 < len(reader.tokens.encode(found.text)) < 128
