"""Calls of functions: read from answers, compared with what was expected, and what is wrong with them named.

An answer may hold calls in blocks (```tool_call ... ```, <tool_code>...</tool_code>, <tool_call>...
</tool_call>), as JSON (one call, or a list of calls), or as Python (`[f(city="Zomba"), g(n=2)]`). Calls are
compared in any order. `calque.evaluate.calls_published` is the published scorer of single calls, beside
which this one stands.

Papers: Emanuilov 2025, arXiv:2506.23394 (verdicts); Patil et al. 2025 (BFCL: lists of possible answers,
typed arguments, calls in any order).
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from calque.errors import DataError
from calque.evaluate import arguments
from calque.evaluate.spans import pairs

Verdict = Literal[
    "CORRECT",
    "API_ERROR",
    "MALFORMED_JSON",
    "DATA_FORMAT_ERROR",
    "NO_CALL_WHEN_EXPECTED",
    "WRONG_FUNCTION",
    "WRONG_PARAMETERS",
    "UNEXPECTED_CALL",
]
ERRORS: tuple[Verdict, ...] = (
    "API_ERROR",
    "MALFORMED_JSON",
    "DATA_FORMAT_ERROR",
    "NO_CALL_WHEN_EXPECTED",
    "WRONG_FUNCTION",
    "WRONG_PARAMETERS",
    "UNEXPECTED_CALL",
)
MARKS = (("```tool_call", "```"), ("<tool_code>", "</tool_code>"), ("<tool_call>", "</tool_call>"))


@dataclass(frozen=True)
class Call:
    """A function and its arguments; in an expected call of BFCL, each a list of possible values."""

    name: str
    arguments: Mapping[str, Any]


class Parsed(NamedTuple):
    """The calls of an answer; `malformed` says what could not be read, "" where all could."""

    calls: tuple[Call, ...]
    malformed: str = ""


def parse(text: str) -> Parsed:
    """The calls in an answer; none where it is plain talk.

    In a block stands one call, so that a list there is malformed, but an empty list or object means no
    call. Outside blocks a list of calls is read.
    """
    for begin, end in MARKS:
        blocks = re.findall(re.escape(begin) + r"\s*(.*?)" + re.escape(end), text, re.DOTALL)
        if blocks:
            return _joined([_block(block.strip()) for block in blocks])
    fenced = re.fullmatch(r"```\w*\s(.*)```", text.strip(), re.DOTALL)
    bare = (fenced.group(1) if fenced else text).strip()
    if bare[:1] in ("{", "["):
        found = _python(bare) if re.match(r"\[\s*[A-Za-z_][\w.]*\s*\(", bare) else _listed(bare)
        return found or Parsed((), "neither JSON nor calls")
    return _python(bare) or Parsed(())


def _joined(parts: Sequence[Parsed]) -> Parsed:
    wrong = next((part.malformed for part in parts if part.malformed), "")
    return Parsed(() if wrong else tuple(call for part in parts for call in part.calls), wrong)


def _block(text: str) -> Parsed:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        return Parsed((), f"not valid JSON ({error})")
    if value in ({}, []) and not isinstance(value, bool):
        return Parsed(())
    return _call(value)


def _listed(text: str) -> Parsed:
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except (json.JSONDecodeError, RecursionError) as error:
        return Parsed((), f"not valid JSON ({error})")
    if isinstance(value, list):
        return _joined([_call(one) for one in value])
    return _call(value) if value else Parsed(())


def _call(value: Any) -> Parsed:
    """One call: {"name", "arguments" or "parameters"}, or BFCL's {name: {arguments}}."""
    if not isinstance(value, dict):
        return Parsed((), f"{type(value).__name__} where a call is expected")
    if "name" not in value and len(value) == 1 and isinstance(next(iter(value.values())), dict):
        name, given = next(iter(value.items()))
        if name not in ("arguments", "parameters"):
            return Parsed((Call(name, given),))
    given = value.get("arguments", value.get("parameters"))
    return Parsed((Call(str(value.get("name", "")), {} if given is None else given),))


def _python(text: str) -> Parsed | None:
    """Calls written in Python; None where the text is none."""
    text = text if text.startswith("[") else f"[{text}]"
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    calls = tree.elts if isinstance(tree, ast.List) else []
    if not calls or not all(isinstance(call, ast.Call) for call in calls):
        return None
    try:
        return Parsed(tuple(_of_tree(call) for call in calls if isinstance(call, ast.Call)))
    except (ValueError, TypeError, RecursionError) as error:
        return Parsed((), str(error))


def _of_tree(call: ast.Call) -> Call:
    if call.args or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError("an argument without its name")
    given = {keyword.arg or "": ast.literal_eval(keyword.value) for keyword in call.keywords}
    return Call(ast.unparse(call.func), given)


class Judged(NamedTuple):
    """The verdict, what is wrong (with the place in the arguments), and how many calls are right."""

    verdict: Verdict
    why: str = ""
    right: int = 0


def judge(
    expected: Sequence[Call],
    made: Parsed,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    language: str = "",
    possible: bool = False,
) -> Judged:
    """What the calls of an answer are worth.

    Args:
        expected: The calls to make, in any order; none where none is right.
        made: The calls of the answer.
        tools: Definitions of the functions, {"name", "parameters": JSON schema}. An argument that a schema
            does not require may be left out, or given, where its value is the schema's default.
        language: Code; strings written in its script and in its romanisation are equal.
        possible: Whether each expected argument is a list of possible values, of which "" means that it
            may be left out (BFCL).
    """
    if made.malformed:
        return Judged("MALFORMED_JSON", made.malformed)
    if not made.calls:
        return Judged("NO_CALL_WHEN_EXPECTED" if expected else "CORRECT")
    if not expected:
        return Judged("UNEXPECTED_CALL", made.calls[0].name)
    schemas = {str(tool.get("name")): parameters(tool) for tool in tools}
    why = [[_wrong(e, m, schemas.get(e.name, {}), language, possible) for m in made.calls] for e in expected]
    right = len(pairs([[j for j, reason in enumerate(row) if not reason] for row in why]))
    if right == len(expected) == len(made.calls):
        return Judged("CORRECT", "", right)
    wanted, given = (Counter(call.name for call in side) for side in (expected, made.calls))
    missing, extra = sorted((wanted - given).elements()), sorted((given - wanted).elements())
    if missing and extra:
        return Judged("WRONG_FUNCTION", f"{extra[0]} instead of {missing[0]}", right)
    if missing:
        return Judged("NO_CALL_WHEN_EXPECTED", f"no call of {missing[0]}", right)
    if extra:
        return Judged("UNEXPECTED_CALL", extra[0], right)
    first = next(
        reason
        for e, row in zip(expected, why, strict=True)
        for m, reason in zip(made.calls, row, strict=True)
        if reason and m.name == e.name
    )
    return Judged("WRONG_PARAMETERS", first, right)


def parameters(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a function's arguments, {} where it has none."""
    found = tool.get("parameters", {})
    return found if isinstance(found, Mapping) else {}


def _wrong(expected: Call, made: Call, schema: Mapping[str, Any], language: str, possible: bool) -> str:
    """What is wrong with a call; "" where nothing is."""
    if made.name != expected.name:
        return f"{made.name} instead of {expected.name}"
    if not isinstance(made.arguments, Mapping):
        return f"arguments: {type(made.arguments).__name__} instead of an object"
    listed = schema.get("properties", {})
    required = schema.get("required", list(expected.arguments))
    for name, value in expected.arguments.items():
        may_miss = possible and isinstance(value, list) and "" in value
        default = name not in required and _is_default(value, listed.get(name, {}), language, possible)
        if name not in made.arguments and not may_miss and not default:
            return f"{name}: missing"
        if name in made.arguments and not arguments.fits(made.arguments[name], value, language, possible):
            return f"{name}: {made.arguments[name]!r:.40} instead of {value!r:.60}"
    for name, value in made.arguments.items():
        known = name in listed and name not in required
        if name not in expected.arguments and not (known and _is_default(value, listed[name], language)):
            return f"{name}: not expected"
    return ""


def _is_default(value: Any, schema: Any, language: str, possible: bool = False) -> bool:
    known = isinstance(schema, Mapping) and "default" in schema
    return known and arguments.fits(schema["default"], value, language, possible)


def mistyped(call: Call, tools: Sequence[Mapping[str, Any]]) -> str:
    """The first argument that is not of the type its schema says; "" where all are, or nothing is said."""
    schema = next((parameters(tool) for tool in tools if tool.get("name") == call.name), {})
    listed = schema.get("properties", {})
    given = call.arguments if isinstance(call.arguments, Mapping) else {}
    found = (arguments.mistyped(value, listed.get(name, {}), name) for name, value in given.items())
    return next(filter(None, found), "")


def of_gold(value: Any, where: str) -> tuple[Call, ...]:
    """Expected calls from a list of {"name", "arguments"} or of BFCL's {name: {argument: [values]}}.

    Raises:
        DataError: Anything else.
    """
    if not isinstance(value, list):
        raise DataError(f"{where}: {value!r:.60}; expected a list of calls")
    found: list[Call] = []
    for entry in value:
        parsed = _call(entry)
        if parsed.malformed or not parsed.calls[0].name or not isinstance(parsed.calls[0].arguments, Mapping):
            raise DataError(f"{where}: {entry!r:.60} is no call; expected a name and arguments")
        found += parsed.calls
    return tuple(found)


def expectation(value: Any) -> tuple[Call, ...] | None:
    """The expected calls of TUCAN's form, an object or that as JSON; None where it is neither.

    The form is {"should_call_function", "expected_function", "expected_parameters"}.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return None
    if not isinstance(value, Mapping):
        return None
    if not value.get("should_call_function", False):
        return ()
    return (Call(str(value.get("expected_function", "")), value.get("expected_parameters") or {}),)


def request(row: Mapping[str, Any], where: str) -> str:
    """The request; BFCL nests it as turns of messages."""
    asked: Any = row.get("question", row.get("user_message"))
    while isinstance(asked, list) and asked:
        asked = asked[-1]
    asked = asked.get("content") if isinstance(asked, dict) else asked
    if not isinstance(asked, str) or not asked.strip():
        raise DataError(f"{where}: question is {asked!r:.60}; expected a text")
    return asked


def of_json(value: Any, where: str) -> Any:
    """A field that may be JSON or be written as text of it."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON ({error.msg} at character {error.pos + 1})") from None


def json_in(text: str) -> Any:
    """The first JSON object or list within a text; None where there is none."""
    for match in re.finditer(r"[\[{]", text):
        try:
            return json.JSONDecoder().raw_decode(text[match.start() :])[0]
        except (json.JSONDecodeError, RecursionError):
            continue
    return None
