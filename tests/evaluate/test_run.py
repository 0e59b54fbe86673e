import json
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForQuestionAnswering, LlamaForTokenClassification

from calque.errors import ConfigError, DataError
from calque.evaluate import benchmark as noun
from calque.evaluate import run as module
from calque.evaluate import score as file_module
from calque.evaluate.benchmark import Benchmark, Item, Prompt
from calque.evaluate.files import records
from calque.evaluate.run import run
from calque.evaluate.score import score
from calque.evaluate.source import Source
from calque.evaluate.table import Table
from calque.model.checkpoint import Checkpoint

WORDS = ["kumwamba", "dziko", "nyanja", "mdima", "mwana", "mbalame"]
ROWS = [{"question": f"Mulungu adalenga {n}", "answer": WORDS[n], "id": f"q{n}"} for n in range(6)]


def item(row, language, split):
    if "question" not in row:
        raise DataError(f"{row['where']}: no question")
    return Item(row["id"], language, {"question": row["question"]}, row["answer"], group=row.get("group", ""))


def shown(one, pack, shots):
    blocks = [f"{pack['question']} {s.fields['question']}\n{pack['answer']} {s.gold}" for s in shots]
    return "\n\n".join([*blocks, f"{pack['question']} {one.fields['question']}\n{pack['answer']}"])


def choice_prompt(one, pack, shots):
    return Prompt(shown(one, pack, shots), tuple(f" {word}" for word in WORDS))


def text_prompt(one, pack, shots):
    return Prompt(shown(one, pack, shots), stop=("\n",), max_tokens=6)


def correct(one, answer, pack):
    return {"correct": float(answer.text.strip() == one.gold)}


def made(name, prompt, form):
    return Benchmark(
        name=name, paper="", licence="", revision=1, languages=("nya_Latn", "eng_Latn"), form=form,
        rows=lambda path, language, split: records(path / f"{split}.{language}.jsonl"),
        item=item, prompt=prompt, score=correct, measures=("correct",),
        sample={"nya_Latn": ROWS, "eng_Latn": ROWS[:3]},
    )  # fmt: skip


TASKS = {"pick": made("pick", choice_prompt, "choice"), "say": made("say", text_prompt, "text")}


@pytest.fixture(autouse=True)
def tasks(monkeypatch):
    monkeypatch.setattr(module, "benchmark", TASKS.__getitem__)
    monkeypatch.setattr(file_module, "benchmark", TASKS.__getitem__)


def asked(tiny, names=("pick", "say"), **changes):
    tasks = {name: Source("sample") for name in names}
    return run({"m": tiny}, tasks, **{"languages": ["nya_Latn"], "dtype": "float32", **changes})


def values(table, metric="correct"):
    return {(r["task"], r["item"]): r["value"] for r in table.where(metric=metric).rows()}


def test_every_item_of_every_task_is_a_row(tiny):
    table = asked(tiny, languages=None)
    assert table.values("task") == ["pick", "say"]
    assert table.values("language") == ["nya_Latn", "eng_Latn"]
    assert len(table.where(metric="correct")) == 2 * (6 + 3)
    assert set(values(table, "missing").values()) == {0.0}


def test_the_row_says_what_was_answered(tiny):
    table = asked(tiny, ("pick",))
    for row in table.where(metric="missing").rows():
        assert row["output"] in WORDS
        right = values(table)["pick", row["item"]]
        assert right == float(row["output"] == ROWS[int(row["item"][1])]["answer"])


def test_every_batch_size_gives_the_same_table(tiny):
    one, other = asked(tiny, batch_tokens=8), asked(tiny, batch_tokens=4096)
    assert list(one.rows()) == list(other.rows())


def test_a_killed_run_goes_on_after_the_last_answer(tiny, tmp_path, monkeypatch):
    whole = asked(tiny)
    given = module._ask

    def killed(*arguments):
        for number, pair in enumerate(given(*arguments)):
            if number == 4:
                raise KeyboardInterrupt
            yield pair

    monkeypatch.setattr(module, "_ask", killed)
    with pytest.raises(KeyboardInterrupt):
        asked(tiny, work=tmp_path)
    (book,) = tmp_path.iterdir()
    with book.open("a") as stream:
        stream.write('{"item": "q5", "te')  # what a kill in the middle of a line leaves
    counted = []

    def counting(subject, language, items, *rest):
        counted.append(len(items))
        yield from given(subject, language, items, *rest)

    monkeypatch.setattr(module, "_ask", counting)
    assert list(asked(tiny, work=tmp_path).rows()) == list(whole.rows())
    assert counted == [2, 6]
    counted.clear()
    asked(tiny, work=tmp_path)
    assert counted == [0, 0]
    asked(tiny, work=tmp_path, seed=1)  # another setting is another book
    assert counted == [0, 0, 6, 6]


def test_examples_come_from_their_own_part_or_are_not_scored(tiny, tmp_path, capsys):
    for split in ("test", "validation"):
        rows = [json.dumps({**row, "id": f"{split}{n}"}) for n, row in enumerate(ROWS)]
        (tmp_path / f"{split}.nya_Latn.jsonl").write_text("\n".join(rows))
    files = {"pick": Source.open(tmp_path)}
    table = run({"m": tiny}, files, languages=["nya"], shots=2, dtype="float32")
    assert len(table.where(metric="correct")) == 6
    table = run({"m": tiny}, files, languages=["nya"], shots=2, shots_split="test", dtype="float32")
    assert sorted(i for _, i in values(table)) == [f"test{n}" for n in range(2, 6)]
    assert "the first 2 items are the examples, and not scored" in capsys.readouterr().err


def test_borrowed_words_are_said_and_signed(tiny, capsys):
    table = asked(tiny, ("pick",), languages=["nya_Latn"], prompt_language="glv")
    assert "pick, nya_Latn: English is used for question, answer\n" in capsys.readouterr().err
    (made_by,) = table.values("signature")
    assert "|words:glv_Latn+2 English words|" in made_by
    assert table.values("prompt_language") == ["glv_Latn"]


def test_the_signature_holds_what_changes_a_number(tiny):
    (first,) = asked(tiny, ("pick",)).values("signature")
    assert first.startswith("pick:1|asked:choice|words:nya_Latn")
    for change in ({"shots": 1}, {"normalise": "bytes"}, {"start": False}, {"prompt_language": "eng"}):
        assert asked(tiny, ("pick",), **change).values("signature") != [first]


def test_limit_spreads_over_the_data(tiny):
    assert sorted(i for _, i in values(asked(tiny, ("pick",), limit=2))) == ["q0", "q3"]
    assert len(values(asked(tiny, ("pick",), limit=60))) == 6


def test_a_chat_template_wraps_the_prompt(tiny, tmp_path, tokenizer):
    import copy

    from .conftest import save_model

    talking = copy.deepcopy(tokenizer)
    talking.chat_template = "{% for m in messages %}U {{ m.content }}{% endfor %}A "
    chatty = save_model(tmp_path, talking)
    prompt = module._chat(chatty.tokenizer(), "m", Prompt("Kodi?", (" inde", " ayi")))
    assert prompt == Prompt("U Kodi?A ", ("inde", "ayi"))
    assert asked(chatty, ("pick",), chat=True).values("signature") != asked(chatty, ("pick",)).values(
        "signature"
    )
    with pytest.raises(ConfigError, match="'m' has no chat template"):
        asked(tiny, ("pick",), chat=True)


def head(folder, tokenizer, kind, **more):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=128, pad_token_id=0, **more,
    )  # fmt: skip
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Checkpoint.at(folder)


def test_a_head_tags_every_word(tmp_path, tokenizer, monkeypatch):
    model = head(tmp_path, tokenizer, LlamaForTokenClassification, id2label={0: "O", 1: "NOUN", 2: "VERB"})
    words = ["Mulungu", "adalenga", "kumwamba"]
    task = Benchmark(
        name="tag", paper="", licence="", revision=1, languages=("nya_Latn",), form="tags",
        rows=records, item=lambda row, language, split: Item("1", language, {"words": words}, ()),
        prompt=lambda one, pack, shots: Prompt(" ".join(words)), measures=("correct",),
        score=lambda one, answer, pack: {"tags": len(answer.value), "noun": answer.value.count("NOUN")},
        sample={"nya_Latn": [{}]},
    )  # fmt: skip
    monkeypatch.setitem(TASKS, "tag", task)
    table = asked(model, ("tag",))
    ids = tokenizer(" ".join(words), return_offsets_mapping=True, return_tensors="pt")
    logits = model.model()(ids["input_ids"]).logits[0]
    best = [["O", "NOUN", "VERB"][int(row.argmax())] for row in logits]
    begins = [next(n for n, (a, b) in enumerate(ids["offset_mapping"][0].tolist()) if b > at)
              for at in (0, 8, 17)]  # fmt: skip
    assert next(table.where(metric="tags").rows())["value"] == 3
    assert next(table.where(metric="noun").rows())["value"] == [best[n] for n in begins].count("NOUN")
    with pytest.raises(ConfigError, match="has a head for tags, pick asks for choice"):
        asked(model, ("pick",))


def test_a_head_finds_a_span_that_stands_in_the_context(tmp_path, tokenizer, monkeypatch):
    model = head(tmp_path, tokenizer, LlamaForQuestionAnswering)
    context = "Pachiyambi Mulungu adalenga kumwamba ndi dziko lapansi. " * 6
    monkeypatch.setattr("calque.evaluate.heads._LONGEST", 48)
    from calque.evaluate.heads import ask_head

    fields = {"question": "Anadalenga?", "context": context}
    ((_, answer),) = ask_head(model, "spans", [Item("1", "nya_Latn", fields, ())], torch.float32)
    start, end = answer.value
    assert answer.text == context[start:end]
    assert start < end
    with pytest.raises(DataError, match="no 'context'"):
        next(ask_head(model, "spans", [Item("1", "nya_Latn", {"question": "a"}, ())], torch.float32))


def answers(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_a_file_of_answers_is_scored_as_a_model_is(tiny, tmp_path):
    table = asked(tiny, ("say",))
    said = {r["item"]: r["output"] for r in table.where(metric="missing").rows()}
    rows = [{"id": name, "prediction": text} for name, text in said.items()]
    given = score({"m": answers(tmp_path / "a.jsonl", rows)}, {"say": Source("sample")}, languages=["nya"])
    assert values(given) == values(table)
    assert values(given, "missing") == values(table, "missing")


def test_answers_in_another_script_match_when_romanized(tmp_path, monkeypatch):
    pytest.importorskip("uroman")
    task = replace(
        TASKS["say"],
        item=lambda row, language, split: Item(row["id"], language, row, ("Москва",)),
        score=lambda one, answer, pack: {"em": float(answer.text in one.gold)},
        sample={"rus_Cyrl": [{"id": "1"}, {"id": "2"}]},
    )
    monkeypatch.setitem(TASKS, "say", task)
    rows = [{"id": "1", "prediction": "Moskva"}, {"id": "2", "prediction": "Kiev"}]
    files, tasks = {"x": answers(tmp_path / "a.jsonl", rows)}, {"say": Source("sample")}
    table = score(files, tasks, languages=["rus"], romanized=True)
    assert values(table, "em") == {("say", "1"): 0.0, ("say", "2"): 0.0}
    assert values(table, "em/romanized") == {("say", "1"): 1.0, ("say", "2"): 0.0}
    assert not values(score(files, tasks, languages=["rus"]), "em/romanized")


def test_missing_answers_are_wrong_and_counted(tmp_path, capsys):
    rows = [{"id": "q1", "prediction": "dziko"}]
    table = score({"x": answers(tmp_path / "a.jsonl", rows)}, {"say": Source("sample")}, languages=["nya"])
    assert sum(values(table).values()) == 1
    assert len(values(table)) == 6
    assert sum(values(table, "missing").values()) == 5
    assert "5 of 6 items unanswered, so wrong" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "q9", "prediction": "a"}], r"a\.jsonl:1: no item 'q9' in say, nya_Latn"),
        ([{"id": "q1", "prediction": "a"}] * 2, r"a\.jsonl:2: item 'q1' of say, nya_Latn is answered twice"),
        ([{"id": "q1"}], r"a\.jsonl:1: an answer needs 'id' and 'prediction'"),
        ([{"id": "q1", "prediction": "a", "choice": "B"}], r"a\.jsonl:1: choice 'B'; expected the index"),
    ],
)
def test_wrong_answers_name_their_line(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        score({"x": answers(tmp_path / "a.jsonl", rows)}, {"say": Source("sample")}, languages=["nya"])


def test_language_or_task_must_be_clear_where_there_are_several(tmp_path):
    path = answers(tmp_path / "a.jsonl", [{"id": "q1", "prediction": "a"}])
    with pytest.raises(DataError, match="no 'language', and there are several"):
        score({"x": path}, {"say": Source("sample")})
    both = {"say": Source("sample"), "pick": Source("sample")}
    with pytest.raises(DataError, match="no 'task', and there are several"):
        score({"x": path}, both, languages=["nya"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"languages": ["xyz"]}, "unknown language 'xyz'"),
        ({"languages": ["fra"]}, "its sample is in nya_Latn, eng_Latn, not in fra_Latn"),
        ({"shots": 6}, "no item is left to score beside 6 examples"),
    ],
)
def test_what_can_not_be_asked_is_refused(tiny, changes, message):
    with pytest.raises(ConfigError, match=message):
        asked(tiny, **changes)


def test_nothing_to_do_is_refused(tiny):
    with pytest.raises(ConfigError, match="at least one system and one task"):
        run({}, {"pick": Source("sample")})
    with pytest.raises(ConfigError, match="at least one system and one task"):
        run({"m": tiny}, {})
    with pytest.raises(ConfigError, match="at least one file of answers and one task"):
        score({}, {"pick": Source("sample")})


def test_two_items_of_one_name_and_no_items_are_refused(tmp_path):
    path = tmp_path / "test.nya_Latn.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [ROWS[0], ROWS[0]]))
    with pytest.raises(DataError, match="two items are named 'q0'"):
        Source.open(tmp_path).items(TASKS["pick"], "nya_Latn", "test")
    with pytest.raises(DataError, match="no file or folder"):
        Source.open(tmp_path / "absent")


def test_unknown_tasks_have_near_names(monkeypatch):
    monkeypatch.setattr(noun, "titles", lambda: {"mgsm": "", "xcopa": ""})
    with pytest.raises(ConfigError, match="no task 'mgms', did you mean 'mgsm'"):
        noun.benchmark("mgms")


def test_tables_of_runs_survive_the_disk(tiny, tmp_path):
    table = asked(tiny)
    table.save(tmp_path / "t.parquet")
    assert list(Table.load(tmp_path / "t.parquet").rows()) == list(table.rows())
