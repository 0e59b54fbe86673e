"""Decoding within a grammar: whatever the logits, the answer can be read."""

import json
import sys

import pytest
import torch
from transformers import LogitsProcessorList

from calque.errors import ConfigError, MissingExtra
from calque.evaluate import calls, grammar
from calque.vocab.tokens import Tokens

pytest.importorskip("llguidance", reason="extra 'constrain' is not installed")
END = 0  # <s> of the tiny tokenizer
TOOLS = [
    {
        "name": "get_weather",
        "parameters": {
            "type": "dict",
            "properties": {
                "city": {"type": "string", "enum": ["Zomba", "София", "Lilongwe"]},
                "days": {"type": "integer", "minimum": 0, "maximum": 9},
            },
            "required": ["city"],
        },
    },
    {"name": "stop"},
]


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return Tokens.of(tokenizer)


def write(tokens, rules, rows=3, most=300, seed=0):
    """Answers of a model whose logits are noise."""
    held = grammar.constrain(tokens, rules, [END], 1)
    random = torch.Generator().manual_seed(seed)
    ids = torch.ones((rows, 1), dtype=torch.long)
    for _ in range(most):
        scores = held(ids, torch.randn((rows, len(tokens)), generator=random) * 4)
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], dim=1)
        if (ids == END).any(dim=1).all():
            break
    made = [row[1 : row.index(END)] if END in row else row[1:] for row in ids.tolist()]
    return [tokens.decode(row) for row in made], (ids == END).any(dim=1).all()


def test_noise_writes_only_calls(tokens):
    for seed in range(3):
        answers, ended = write(tokens, grammar.of_tools(TOOLS, most=2), seed=seed)
        assert ended
        for answer in answers:
            made = calls.parse(answer)
            assert not made.malformed and len(made.calls) <= 2
            assert isinstance(json.loads(answer), list)
            for call in made.calls:
                assert call.name in ("get_weather", "stop") and not calls.mistyped(call, TOOLS)
                assert call.name == "stop" or call.arguments["city"] in ("Zomba", "София", "Lilongwe")


def test_lark_and_scripts(tokens):
    answers, ended = write(tokens, 'start: WORD " " tag\nWORD: /[а-я]{3}/\ntag: "NOUN" | "VERB"\n')
    assert ended
    for answer in answers:
        word, tag = answer.split(" ")
        assert len(word) == 3 and all("а" <= letter <= "я" for letter in word) and tag in ("NOUN", "VERB")


def test_no_functions_leave_the_empty_list(tokens):
    assert write(tokens, grammar.of_tools([]))[0] == ["[]"] * 3


def test_a_model_within_a_grammar_and_without(tiny, tokens):
    model = tiny.model(torch.float32)
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    settings = {"max_new_tokens": 100, "do_sample": False, "eos_token_id": END, "pad_token_id": END}
    answers = []
    for held in ([], [grammar.constrain(tokens, grammar.of_tools(TOOLS, most=1), [END], 3)]):
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), logits_processor=LogitsProcessorList(held), **settings
        )
        answers.append([tokens.decode([t for t in row[3:] if t != END]) for row in out.tolist()])
    assert all(not calls.parse(answer).calls for answer in answers[0])
    assert all(isinstance(json.loads(answer), list) for answer in answers[1])


def test_rows_that_change_places_are_read_anew(tokens):
    rules = 'start: "ab" | "cd"\n'
    held = grammar.constrain(tokens, rules, [END], 0)
    a, b, c, d = (tokens.encode(letter)[0] for letter in "abcd")
    held(torch.zeros((2, 0), dtype=torch.long), torch.zeros((2, len(tokens))))
    for first, second in ((a, c), (c, a)):
        scores = held(torch.tensor([[first], [second]]), torch.zeros((2, len(tokens))))
        allowed = [set(torch.isfinite(row).nonzero().flatten().tolist()) for row in scores]
        assert allowed == ([{b}, {d}] if first == a else [{d}, {b}])


@pytest.mark.parametrize("rules", ["start: unknown_rule\n", '{"type": 5}', "{not json"])
def test_what_is_no_grammar(tokens, rules):
    with pytest.raises(ConfigError, match=r"grammar|schema"):
        grammar.constrain(tokens, rules, [END], 0)


def test_other_wrong_input(tokens, monkeypatch):
    with pytest.raises(ConfigError, match="no token that ends"):
        grammar.constrain(tokens, "start: /a/\n", [], 0)
    for tools in ([{}], [{"name": ""}], [{"name": "a"}, {"name": "a"}]):
        with pytest.raises(ConfigError, match="each needs a name of its own"):
            grammar.of_tools(tools)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtra, match="calque\\[constrain\\]"):
        grammar.constrain(tokens, "start: /never seen before/\n", [END], 0)
