"""The published scorer of single calls, defects included: what TUCAN's evaluation gives.

Only the first block is looked at. Answers on which the published code stops with an exception (a list, a
number or null in the block; arguments that are no object) get the verdict "CRASHED" here. An object with a
key "error" counts as malformed; true equals 1; ъ and ь are dropped and щ is "shch" in romanised Bulgarian.

Paper: Emanuilov 2025, arXiv:2506.23394. Follows: s-emanuilov/tucan, evaluate.py and evaluation.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from calque.evaluate.arguments import LETTERS, plain_text

BEGIN, END = "```tool_call", "```"


class Crash(Exception):
    """The published code would have stopped here."""


def parse(response: str, begin: str = BEGIN, end: str = END) -> Any:
    """What stands between the first marks: a call, None without marks, or {"error": "malformed_json"}."""
    found = re.search(re.escape(begin) + "(.*?)" + re.escape(end), response, re.DOTALL)
    if not found:
        return None
    content = found.group(1).strip()
    try:
        call = json.loads(content)
    except json.JSONDecodeError:
        return {"error": "malformed_json", "content": content}
    if call is None or isinstance(call, bool | int | float):
        raise Crash(f"{type(call).__name__} as a call")
    if isinstance(call, dict) and "arguments" in call:
        return {**{k: v for k, v in call.items() if k != "arguments"}, "parameters": call["arguments"]}
    return call


def equivalent(expected: Any, made: Any) -> bool:
    """Whether two arguments are equal by the published rules."""
    if expected is None or made is None:
        return expected is None and made is None
    if expected == made:
        return True
    if isinstance(expected, str) and isinstance(made, str):
        same = expected.strip().lower() == made.strip().lower()
        return same or _latin(expected) == _latin(made)
    if isinstance(expected, str) != isinstance(made, str):
        text, value = (expected, made) if isinstance(expected, str) else (made, expected)
        return isinstance(value, int | float) and _number(text) == value
    if isinstance(expected, list) and isinstance(made, list):
        return len(expected) == len(made) and all(map(equivalent, expected, made))
    if isinstance(expected, dict) and isinstance(made, dict):
        return same_parameters(expected, made)
    return False


def _latin(text: str) -> str:
    return "".join(LETTERS.get(letter, letter) for letter in plain_text(text))


def _number(text: str) -> int | float | None:
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return None


def same_parameters(expected: Any, made: Any) -> bool:
    """Whether two objects of arguments have the same keys and equivalent values; null is an empty object."""
    expected, made = expected or {}, made or {}
    if not isinstance(expected, dict) or not isinstance(made, dict):
        raise Crash("arguments that are no object")
    return set(expected) == set(made) and all(equivalent(expected[k], made[k]) for k in expected)


def verdict(
    expectation: Any, response: str, begin: str = BEGIN, end: str = END, *, failed: bool = False
) -> str:
    """The verdict on one answer, or "CRASHED".

    Args:
        expectation: {"should_call_function", "expected_function", "expected_parameters"}, or that as JSON.
        response: The answer.
        begin: What opens a block.
        end: What closes it.
        failed: Whether no answer was got at all.
    """
    if failed:
        return "API_ERROR"
    try:
        return _verdict(expectation, parse(response, begin, end))
    except Crash:
        return "CRASHED"


def _verdict(expectation: Any, call: Any) -> str:
    if isinstance(call, dict) and "error" in call:
        return "MALFORMED_JSON"
    if isinstance(expectation, str):
        try:
            expectation = json.loads(expectation)
        except json.JSONDecodeError:
            return "DATA_FORMAT_ERROR"
    if not isinstance(expectation, Mapping):
        return "DATA_FORMAT_ERROR"
    if not expectation.get("should_call_function", False):
        return "UNEXPECTED_CALL" if call else "CORRECT"
    if not call:
        return "NO_CALL_WHEN_EXPECTED"
    if not isinstance(call, dict):
        raise Crash(f"{type(call).__name__} as a call")
    if call.get("name") != expectation.get("expected_function"):
        return "WRONG_FUNCTION"
    same = same_parameters(expectation.get("expected_parameters"), call.get("parameters"))
    return "CORRECT" if same else "WRONG_PARAMETERS"
