"""Examples become what each objective reads; tuning learns them and writes an ordinary folder."""

import json
import shutil

import pytest
import torch
import transformers as hf

from calque.data.corpus import Corpus
from calque.data.encode import Encoder, class_names, tag_names, tags
from calque.data.example import Example, Span
from calque.data.pack import IGNORED, Pieces
from calque.errors import ConfigError, DataError, ModelError
from calque.model.checkpoint import Checkpoint
from calque.train.tune import tune

from .conftest import WORDS
from .test_lm import changed, losses

NYA, ENG = "nya_Latn", "eng_Latn"
SMALL = {"batch_tokens": 128, "length": 32, "lr": 3e-3, "precision": "float32", "warmup": 0.0}


def examples(number, **more):
    """Texts whose first word says what is right."""
    for n in range(number):
        words = [WORDS[n % 4], *WORDS[n % 5 : n % 5 + 4]]
        yield n, " ".join(words), {key: make(n, words) for key, make in more.items()}


def corpus_of(number, **more):
    return Corpus.of(
        Example(str(n), {NYA: text}, str(n), **marks) for n, text, marks in examples(number, **more)
    )


@pytest.fixture(scope="session")
def encoder_model(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    config = hf.BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=0, bos_token_id=0, eos_token_id=1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes,
    )  # fmt: skip
    hf.BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Checkpoint.at(folder)


@pytest.fixture(scope="session")
def seq2seq(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    config = hf.T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    hf.T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Checkpoint.at(folder)


def falls(work):
    seen = losses(work)
    return sum(seen[-3:]) < 0.9 * sum(seen[:3])


def test_a_decoder_learns_answers_and_not_prompts(base, tmp_path, tokenizer):
    data = corpus_of(12, target=lambda n, words: words[0], question=lambda n, words: "mau oyamba")
    result = tune(base, data, work=tmp_path, objective="sft", steps=12, **SMALL)
    assert falls(tmp_path) and result.config["architectures"] == ["LlamaForCausalLM"]
    pieces = Pieces.load(tmp_path / "data.tokens")
    ids, prompt = pieces.piece(0), pieces.prompt(0)
    first = next(iter(data))
    assert tokenizer.decode(ids[prompt:-1]) == first.target and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:prompt]) == f"<s>mau oyamba\n{first.sides[NYA]}\n"
    line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert line["causal"] == pytest.approx(line["loss"])


def test_an_encoder_decoder_learns_answers_and_translations(seq2seq, tmp_path):
    data = corpus_of(8, target=lambda n, words: words[0])
    tune(seq2seq, data, work=tmp_path / "a", objective="sft", steps=10, **SMALL)
    assert falls(tmp_path / "a")
    pairs = Corpus.of(Example(str(n), {NYA: text, ENG: text.upper()}, str(n)) for n, text, _ in examples(8))
    result = tune(seq2seq, pairs, work=tmp_path / "b", objective="translate", steps=10, **SMALL)
    assert falls(tmp_path / "b") and result.config["architectures"] == ["T5ForConditionalGeneration"]


def test_a_decoder_reads_names_of_languages_before_it_translates(base, tmp_path, tokenizer):
    pairs = Corpus.of(Example(str(n), {NYA: text, ENG: text.upper()}, str(n)) for n, text, _ in examples(8))
    tune(base, pairs, work=tmp_path, objective="translate", steps=2, **{**SMALL, "length": 96})
    pieces = Pieces.load(tmp_path / "data.tokens")
    text = next(iter(pairs)).sides
    prompt = pieces.prompt(0)
    assert tokenizer.decode(pieces.piece(0)[:prompt]).endswith(f": {text[NYA]}\nEnglish:")
    assert tokenizer.decode(pieces.piece(0)[prompt:-1]) == f" {text[ENG]}"
    with pytest.raises(ConfigError, match="needs two sides"):
        tune(base, corpus_of(3), work=tmp_path, objective="translate", steps=1, **SMALL)


@pytest.mark.parametrize("model", ["encoder_model", "base"])
def test_classes_get_a_head_with_their_names(model, request, tmp_path):
    base = request.getfixturevalue(model)
    data = corpus_of(16, target=lambda n, words: f"c{n % 2}" if n % 4 < 2 else "other")
    result = tune(base, data, work=tmp_path, objective="classify", steps=15, **SMALL)
    assert falls(tmp_path)
    assert result.config["id2label"] == {"0": "c0", "1": "c1", "2": "other"}
    assert result.config["architectures"][0].endswith("ForSequenceClassification")
    assert "classify" in json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    tune(result, data, work=tmp_path / "again", objective="classify", steps=1, lr=1e-9, length=32)
    assert losses(tmp_path / "again")[0] < losses(tmp_path)[0]  # its head was kept


def test_the_head_trains_beside_low_rank_pairs(encoder_model, tmp_path):
    data = corpus_of(8, target=lambda n, words: n % 2)
    result = tune(
        encoder_model, data, work=tmp_path, objective="classify", part="lora", rank=2, steps=4, **SMALL
    )
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= set(result.tensors)
    table = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(result.read(table), encoder_model.read(table))
    query = "bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(result.read(query), encoder_model.read(query))


def test_tags_stand_at_the_first_token_of_each_word(encoder_model, tmp_path, tokenizer):
    data = corpus_of(8, spans=lambda n, words: {NYA: (Span(0, len(" ".join(words[:2])), "NAME"),)})
    result = tune(encoder_model, data, work=tmp_path, objective="tag", steps=10, **SMALL)
    assert falls(tmp_path) and list(result.config["id2label"].values()) == ["O", "B-NAME", "I-NAME"]
    pieces = Pieces.load(tmp_path / "data.tokens")
    text = next(iter(data)).sides[NYA]
    found = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    labels = pieces.answer(0).tolist()
    assert [n for n in labels if n != IGNORED] == [1, 2, *[0] * (len(text.split()) - 2)]
    words = [text[:b].rstrip().count(" ") if text[a:b].strip() else None for a, b in found]
    assert [n != IGNORED for n in labels] == [
        word is not None and word not in words[:place] for place, word in enumerate(words)
    ]


def test_words_are_cut_where_a_span_begins_or_ends():
    text = "ku Zomba-Blantyre, lero"
    spans = [Span(3, 8, "L"), Span(9, 17, "L")]
    assert [(text[a:b], tag) for a, b, tag in tags(text, spans)] == [
        ("ku", "O"), ("Zomba", "B-L"), ("-", "O"), ("Blantyre", "B-L"), (",", "O"), ("lero", "O"),
    ]  # fmt: skip
    inside = tags("Mai Jane Banda", [Span(4, 14, "P")])
    assert [tag for _, _, tag in inside] == ["O", "B-P", "I-P"]
    assert tag_names([Example("1", {NYA: text}, spans={NYA: tuple(spans)})]) == ("O", "B-L", "I-L")
    assert class_names([Example(str(n), {NYA: "x"}, target=t) for n, t in enumerate(["b", 10, 9, "a"])]) == (
        "9", "10", "a", "b",
    )  # fmt: skip


def test_answers_in_a_text_are_found_in_every_window(encoder_model, tmp_path, tokenizer):
    long = " ".join(WORDS * 3)
    start = long.index("ulemu", len(" ".join(WORDS)))
    question = Example("1", {NYA: long}, question="chiyani", spans={NYA: (Span(start, start + 5),)})
    encoder = Encoder(tokenizer, 24, (NYA,))
    pieces = list(encoder.pieces("qa", [question]))
    hits = [piece for piece in pieces if tuple(piece.answer) != (0, 0)]
    assert len(pieces) > 3 and hits and max(len(p.ids) for p in pieces) <= 24
    for piece in hits:
        first, last = piece.answer
        assert tokenizer.decode(piece.ids[first : last + 1]).strip() == "ulemu" and first >= piece.prompt
    data = corpus_of(
        8, question=lambda n, words: "mau", spans=lambda n, words: {NYA: (Span(0, len(words[0])),)}
    )
    result = tune(encoder_model, data, work=tmp_path, objective="qa", steps=10, **SMALL)
    assert falls(tmp_path) and result.config["architectures"] == ["BertForQuestionAnswering"]


@pytest.mark.parametrize("compare", ["pairwise", "listwise"])
def test_candidates_are_ranked(encoder_model, tmp_path, compare, capsys):
    grades = lambda n, words: 0 if n < 4 else n % 4  # noqa: E731
    data = corpus_of(20, question=lambda n, words: WORDS[n // 4], target=grades)
    settings = {**SMALL, "lr": 1e-2, "compare": compare}
    result = tune(encoder_model, data, work=tmp_path, objective="rank", steps=16, **settings)
    assert losses(tmp_path)[-1] < 0.98 * losses(tmp_path)[0]  # what lists say has an entropy of its own
    assert result.config["id2label"] == {"0": "score"}
    assert "1 lists of one grade left out" in capsys.readouterr().err
    pieces = Pieces.load(tmp_path / "data.tokens")
    assert len(pieces) == 4 and sum(pieces.answer(0)[:4]) == pieces.size(0)


def test_weights_and_a_teacher_count(base, encoder_model, tmp_path):
    data = corpus_of(8, target=lambda n, words: n % 2, weight=lambda n, words: float(n % 2))
    teacher = tune(encoder_model, data, work=tmp_path / "t", objective="classify", steps=8, **SMALL)
    tune(encoder_model, data, None, teacher, work=tmp_path / "s", objective="classify", steps=3, **SMALL)
    line = json.loads((tmp_path / "s" / "log.jsonl").read_text().splitlines()[0])
    assert line["loss"] == pytest.approx(0.5 * line["classify"] + 0.5 * line["teacher"])
    assert line["teacher"] > 0
    other = corpus_of(8, target=lambda n, words: f"x{n % 2}")
    with pytest.raises(ConfigError, match=r"tells 0, 1 apart, the examples x0, x1"):
        tune(encoder_model, other, None, teacher, work=tmp_path / "x", objective="classify", steps=3, **SMALL)


def test_held_out_loss_ends_the_training_and_the_best_state_is_the_result(encoder_model, tmp_path, capsys):
    data = corpus_of(8, target=lambda n, words: n % 2)
    against = corpus_of(8, target=lambda n, words: 1 - n % 2)
    settings = {**SMALL, "objective": "classify", "schedule": "constant", "check_steps": 2}
    best = tune(encoder_model, data, work=tmp_path / "short", steps=2, **settings)
    stopped = tune(encoder_model, data, against, work=tmp_path / "long", steps=40, patience=2, **settings)
    notes = json.loads((stopped.folder / "training.json").read_text())["stage 0"]
    assert notes["best_step"] == 2 and notes["steps"] == 6
    assert not changed(best, stopped)
    assert "2 checks without a better one" in capsys.readouterr().err
    kept = [
        json.loads(line).get("held_out") for line in (tmp_path / "long/log.jsonl").read_text().splitlines()
    ]
    assert [value is None for value in kept] == [True, False] * 3 and kept[1] == notes["best"] < kept[3]


def test_a_killed_run_goes_on_with_its_best_state(encoder_model, tmp_path):
    from multiprocessing import get_context

    from calque.train import steps

    torch.set_num_threads(1)
    data = corpus_of(8, target=lambda n, words: n % 2)
    against = corpus_of(8, target=lambda n, words: 1 - n % 2)
    settings = dict(
        objective="classify", schedule="constant", check_steps=2, patience=3, steps=40, save_steps=3
    )
    straight = tune(encoder_model, data, against, work=tmp_path / "a", **settings, **SMALL)

    def run():
        import os

        real = steps._show

        def show(shown, amount, line):
            real(shown, amount, line)
            if line["step"] == 5:
                os._exit(9)

        steps._show = show
        tune(encoder_model, data, against, work=tmp_path / "b", **settings, **SMALL)

    process = get_context("fork").Process(target=run)
    process.start()
    process.join(120)
    assert process.exitcode == 9
    assert sorted(p.name for p in (tmp_path / "b").glob("*-0*")) == ["best-000000002", "state-000000003"]
    resumed = tune(encoder_model, data, against, work=tmp_path / "b", **settings, **SMALL)
    assert losses(tmp_path / "a") == losses(tmp_path / "b") and not changed(straight, resumed)


def test_epochs_are_a_budget(base, tmp_path):
    data = corpus_of(10, target=lambda n, words: words[0])
    result = tune(base, data, work=tmp_path, objective="sft", epochs=2, **SMALL)
    notes = json.loads((result.folder / "training.json").read_text())["stage 0"]
    assert notes["epochs"] == [2.0]
    assert notes["tokens"] == 2 * len(Pieces.load(tmp_path / "data.tokens").ids)


@pytest.mark.parametrize(
    ("settings", "more", "error", "message"),
    [
        ({"objective": "sft", "steps": 1}, {}, DataError, r"example 0: no target"),
        (
            {"objective": "classify", "steps": 1},
            {"target": lambda n, w: 1},
            DataError,
            "nothing to tell apart",
        ),
        ({"objective": "tag", "steps": 1}, {}, DataError, "labels O: there is nothing"),
        ({"objective": "qa", "steps": 1}, {}, DataError, "example 0: no question"),
        ({"objective": "rank", "steps": 1}, {"target": lambda n, w: n}, DataError, "no question"),
        (
            {"objective": "rank", "steps": 1},
            {"question": lambda n, w: "q", "target": lambda n, w: "good"},
            DataError,
            "grade 'good'",
        ),
        ({"objective": "sft"}, {"target": lambda n, w: "x"}, ConfigError, "one of minutes, tokens or steps"),
        (
            {"objective": "sft", "steps": 1, "part": "delta"},
            {"target": lambda n, w: "x"},
            ConfigError,
            "delta",
        ),
    ],
)
def test_what_can_not_be_tuned(encoder_model, base, tmp_path, settings, more, error, message):
    with pytest.raises(error, match=message):
        tune(base, corpus_of(4, **more), work=tmp_path, **settings, **SMALL)


def test_an_encoder_decoder_needs_its_start_and_end(seq2seq, tmp_path):
    labels = {"target": lambda n, w: w[0]}
    with pytest.raises(ModelError, match="end token, which its tokenizer does not put after a text"):
        tune(seq2seq, corpus_of(8, **labels), work=tmp_path / "a", objective="classify", steps=1, **SMALL)
    folder = tmp_path / "t5"
    shutil.copytree(seq2seq.folder, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["decoder_start_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no decoder_start_token_id in its config"):
        tune(Checkpoint.at(folder), corpus_of(8, **labels), work=tmp_path / "b", objective="sft", steps=1,
             **SMALL)  # fmt: skip


def test_a_model_that_mixes_no_types_is_computed_in_float32(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("calque.train.result.has_bf16", lambda: True)
    torch.manual_seed(0)
    config = hf.XmodConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, pad_token_id=0,
        num_attention_heads=4, max_position_embeddings=64, languages=["en_XX"], default_language="en_XX",
    )  # fmt: skip
    hf.XmodForMaskedLM(config).save_pretrained(tmp_path / "xmod")
    tokenizer.save_pretrained(tmp_path / "xmod")
    xmod = Checkpoint.at(tmp_path / "xmod")
    settings = {**SMALL, "objective": "classify", "steps": 1}
    data = corpus_of(8, target=lambda n, w: w[0])
    with pytest.raises(ConfigError, match="XmodForSequenceClassification does not compute in bfloat16"):
        tune(xmod, data, work=tmp_path / "a", **{**settings, "precision": "bfloat16"})
    tune(xmod, data, work=tmp_path / "b", **{**settings, "precision": "auto"})
