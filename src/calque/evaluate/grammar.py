"""Decoding held to a grammar: at each step only tokens that can lead to an answer of it stay allowed.

A grammar is text: a JSON schema where it begins with "{", else a Lark grammar whose first rule is `start`
(the dialect of `llguidance`, which does the work; extra `constrain`). What is written from a schema has no
free blanks, so that an answer can not be filled up with them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from calque.errors import ConfigError

if TYPE_CHECKING:
    from calque.evaluate.constraint import Constraint
    from calque.vocab.tokens import Tokens

LONGEST_TEXT = 200  # characters of a text in an answer, so that every answer comes to an end
_NAMES = {"dict": "object", "float": "number", "tuple": "array"}  # BFCL's names of types
_KEPT = ("enum", "const", "minimum", "maximum", "minItems", "maxItems", "pattern", "minLength")


def of_tools(tools: Sequence[Mapping[str, Any]], most: int = 8) -> str:
    """JSON schema of a list of calls of these functions, possibly none.

    Args:
        tools: Definitions, {"name", "parameters": JSON schema or BFCL's}.
        most: The longest list.

    Raises:
        ConfigError: A function without a name, or two of one name.
    """
    names = [tool.get("name") for tool in tools]
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise ConfigError(f"functions named {names}; each needs a name of its own")
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool["name"]}, "arguments": _arguments(tool.get("parameters"))},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    if not calls:
        return json.dumps({"type": "array", "maxItems": 0})
    return json.dumps({"type": "array", "items": {"anyOf": calls}, "maxItems": most}, ensure_ascii=False)


def _arguments(schema: Any) -> dict[str, Any]:
    return _schema({"type": "object", **schema} if isinstance(schema, Mapping) else {"type": "object"})


def _schema(given: Any) -> dict[str, Any]:
    """A definition's schema as a closed one: what it names and nothing else, every text of bounded length."""
    if not isinstance(given, Mapping):
        return {}
    kind = given.get("type")
    kind = _NAMES.get(kind, kind) if isinstance(kind, str) else kind
    found: dict[str, Any] = {key: given[key] for key in _KEPT if key in given}
    if kind not in (None, "any"):
        found["type"] = kind
    if kind in ("string", "any", None) and not {"enum", "const", "pattern"} & set(given):
        found["maxLength"] = min(LONGEST_TEXT, given.get("maxLength", LONGEST_TEXT))
        found["type"] = "string"
    if kind == "array":
        found["items"] = _schema(given.get("items", {}))
        found.setdefault("maxItems", 16)
    if kind == "object":
        found["properties"] = {name: _schema(part) for name, part in given.get("properties", {}).items()}
        found["required"] = [name for name in given.get("required", []) if name in found["properties"]]
        found["additionalProperties"] = False
    return found


def constrain(tokens: Tokens, grammar: str, ends: Sequence[int], begin: int) -> Constraint:
    """What keeps generation within a grammar.

    Args:
        tokens: The model's tokenizer.
        grammar: JSON schema or Lark.
        ends: Ids that end an answer; one of them is allowed where the grammar allows an end.
        begin: How many tokens of each row stand before its answer.

    Raises:
        ConfigError: A grammar that is none, or no end token.
        MissingExtra: llguidance is not installed.
    """
    if not ends:
        raise ConfigError(
            "the model has no token that ends a text, so that no answer within a grammar can end"
        )
    from calque.evaluate.constraint import Constraint, matcher

    return Constraint(matcher(tokens, grammar, tuple(ends)), len(tokens), begin)
