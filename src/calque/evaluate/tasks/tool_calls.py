"""Calls of functions: the right ones with the right arguments, or none, in any language.

JSON lines in TUCAN's form (Bulgarian as published: user_message, functions, expected_behavior,
scenario_type) or in BFCL's (question, function, ground_truth with lists of possible answers).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from calque.errors import DataError
from calque.evaluate import calls, calls_published
from calque.evaluate.benchmark import Answer, Benchmark, Item, Prompt, Row
from calque.evaluate.files import locate, records
from calque.evaluate.pack import LanguagePack
from calque.language import Language


def _rows(path: Path, language: str, split: str) -> Iterator[Row]:
    of = Language.parse(language)
    names = [of.code, of.iso, of.short]
    names = [f"{folder}/{split}" for folder in names] + names + [split]
    yield from records(locate(path, *(f"{name}.json*" for name in names)))


def _item(row: Row, language: str, split: str) -> Item:
    where = str(row.get("where", "record"))
    tools = calls.of_json(row.get("functions", row.get("function", [])), where)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) and tool.get("name") for tool in tools):
        raise DataError(f"{where}: functions {tools!r:.60}; expected a list of definitions with names")
    possible = "ground_truth" in row
    if possible:
        gold = calls.of_gold(calls.of_json(row["ground_truth"], where), where)
    elif (found := calls.expectation(row.get("expected_behavior"))) is not None:
        gold = found
    else:
        gold = calls.of_gold(row.get("calls"), where)
    fields = {
        "question": calls.request(row, where),
        "tools": tools,
        "possible": possible,
        "scenario": str(row.get("scenario_type", "")),
    }
    return Item(str(row.get("id") or where.rpartition(":")[2]), language, fields, gold)


def _prompt(item: Item, pack: LanguagePack, shots: Sequence[Item]) -> Prompt:
    """Functions, request, and a JSON list of calls as the answer, [] where none is right."""
    from calque.evaluate.grammar import of_tools

    told = [f"{_asked(shot, pack)} {_shown(shot)}" for shot in shots]
    grammar = of_tools(item.fields["tools"])
    return Prompt("\n\n".join([*told, _asked(item, pack)]), stop=("\n\n",), max_tokens=512, grammar=grammar)


def _asked(item: Item, pack: LanguagePack) -> str:
    tools = json.dumps(item.fields["tools"], ensure_ascii=False)
    return f"functions: {tools}\n{pack['question']} {item.fields['question']}\n{pack['answer']}"


def _shown(item: Item) -> str:
    """The expected calls as an answer; of possible values the first one."""
    first = item.fields["possible"]
    listed = [
        {"name": c.name, "arguments": {k: v[0] if first else v for k, v in c.arguments.items() if v != [""]}}
        for c in item.gold
    ]
    return json.dumps(listed, ensure_ascii=False)


def _score(item: Item, answer: Answer, pack: LanguagePack) -> Mapping[str, float]:
    made = calls.parse(answer.text)
    tools, possible = item.fields["tools"], item.fields["possible"]
    failed = isinstance(answer.value, Mapping) and bool(answer.value.get("failed"))
    found = calls.judge(item.gold, made, tools=tools, language=item.language, possible=possible)
    verdict = "API_ERROR" if failed else found.verdict
    right = float(verdict == "CORRECT")
    typed = not any(calls.mistyped(call, tools) for call in made.calls)
    metrics = {
        "correct": right,
        "typed": right * typed,
        "parsed": float(not made.malformed),
        "tp": float(found.right),
        "fp": float(len(made.calls) - found.right),
        "fn": float(len(item.gold) - found.right),
        **{f"error.{name}": float(verdict == name) for name in calls.ERRORS},
    }
    if item.fields["scenario"]:
        metrics[f"correct.{item.fields['scenario']}"] = right
    return metrics | ({} if possible or len(item.gold) > 1 else _published(item, answer.text, failed))


def _published(item: Item, text: str, failed: bool) -> dict[str, float]:
    """The published scorer's verdict on one expected call or none; what it stops at counts as wrong."""
    one = item.gold[0] if item.gold else None
    expectation = {
        "should_call_function": one is not None,
        "expected_function": one.name if one else None,
        "expected_parameters": dict(one.arguments) if one else None,
    }
    verdict = calls_published.verdict(expectation, text, failed=failed)
    return {"correct/published": float(verdict == "CORRECT"), "crashed": float(verdict == "CRASHED")}


def _sample(weather: str, table: str, talk: str) -> tuple[Row, ...]:
    """One call, another one, both, none."""
    tools = [_tool("get_weather", "city", "string"), _tool("book_table", "seats", "integer")]
    first = {"name": "get_weather", "arguments": {"city": "Zomba"}}
    second = {"name": "book_table", "arguments": {"seats": 4}}
    asked = [(weather, [first]), (table, [second]), (f"{weather} {table}", [first, second]), (talk, [])]
    return tuple(
        {"id": str(n), "question": text, "functions": tools, "calls": made}
        for n, (text, made) in enumerate(asked, 1)
    )


def _tool(name: str, argument: str, kind: str) -> dict[str, Any]:
    properties = {argument: {"type": kind}}
    return {"name": name, "parameters": {"type": "object", "properties": properties, "required": [argument]}}


BENCHMARK = Benchmark(
    name="tool_calls",
    paper="Emanuilov 2025, arXiv:2506.23394 (TUCAN); Patil et al. 2025 (BFCL)",
    licence="by data set; BFCL: Apache-2.0",
    revision=1,
    languages=("bul_Cyrl",),
    form="text",
    rows=_rows,
    item=_item,
    prompt=_prompt,
    score=_score,
    measures=("correct", "correct/published", "f1"),
    shots=2,
    sample={
        "eng_Latn": _sample("How is the weather in Zomba?", "Book a table for four.", "Good morning!"),
        "nya_Latn": _sample(
            "Nyengo ku Zomba ili bwanji?", "Sungani tebulo la anthu anayi.", "Mwadzuka bwanji!"
        ),
        "bul_Cyrl": _sample("Какво е времето в Zomba?", "Запази маса за четирима.", "Добро утро!"),
    },
)
