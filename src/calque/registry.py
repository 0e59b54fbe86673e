"""The table of methods: what exists, where it is, and how its settings are bound from its signature.

A method is a plain typed function. Its positional parameters are material (checkpoints, texts, maps), its
keyword-only parameters are settings. This module turns a signature into validation; the command line and
the recipes both go through it, so there is one place where a setting can be right or wrong.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calque.errors import ConfigError, did_you_mean
from calque.methods import ROWS

FAMILIES = {
    "data": "texts in, texts out: read, split, align",
    "vocab": "tokenizers, and maps from a new vocabulary to an old one",
    "delta": "additions to a model that train while it stays as it is",
    "train": "the training loop",
    "merge": "new checkpoints computed from old ones, streamed",
    "evaluate": "item-level tables of scores",
    "analyze": "what models are like inside, and how they differ",
}


_LARGEST = 3.4e38


@dataclass(frozen=True)
class Method:
    """One row of the table; `entry` is imported only when the method is used."""

    name: str
    entry: str
    act: str
    paper: str = ""

    @property
    def family(self) -> str:
        """The part of the name before the slash."""
        return self.name.split("/")[0]

    def load(self) -> Callable[..., Any]:
        """Import the function."""
        module, function = self.entry.split(":")
        return getattr(importlib.import_module(module), function)


METHODS: dict[str, Method] = {name: Method(name, entry, act, paper) for name, entry, act, paper in ROWS}


def method(name: str) -> Method:
    """Look a method up as "family/name"; an unknown one is a ConfigError with the nearest names."""
    if name in METHODS:
        return METHODS[name]
    raise ConfigError(f"no method '{name}'{did_you_mean(name, METHODS)}; `calque list` shows all of them")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method: material when positional, a setting when keyword-only."""

    name: str
    annotation: Any
    default: Any
    help: str

    @property
    def required(self) -> bool:
        """Whether the parameter has no default."""
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True)
class Contract:
    """What a method's signature and docstring say."""

    function: Callable[..., Any]
    act: str
    doc: str
    materials: tuple[Parameter, ...]
    settings: tuple[Parameter, ...]
    returns: Any
    takes_work: bool

    def validate(self, settings: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Check and complete settings against the signature.

        Args:
            settings: Values by name, as written in a recipe or on the command line.
            where: What the message begins with, such as "step 'map' (vocab/focus)".

        Returns:
            Every setting with its final value, in signature order.

        Raises:
            ConfigError: An unknown, missing or invalid setting.
        """
        from pydantic import ConfigDict, ValidationError, create_model

        names = [p.name for p in self.settings]
        for name in settings:
            if name not in names:
                hint = did_you_mean(name, names) or f"; it has {', '.join(names) or 'none'}"
                raise ConfigError(f"{where}: no setting '{name}'{hint}")
        fields: dict[str, Any] = {
            p.name: (p.annotation, ... if p.required else p.default) for p in self.settings
        }
        model = create_model(
            "Settings", __config__=ConfigDict(arbitrary_types_allowed=True, protected_namespaces=()), **fields
        )
        try:
            checked = model(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"{where}: setting '{name}' = {first.get('input')!r}: {first['msg'].lower()}"
            ) from None
        found = {name: getattr(checked, name) for name in names}
        for name, value in found.items():
            for number in value if isinstance(value, list | tuple) else (value,):
                if isinstance(number, float) and not abs(number) <= _LARGEST:
                    raise ConfigError(
                        f"{where}: setting '{name}' = {number}: should be a number that float32 holds"
                    )
        return found


def contract(function: Callable[..., Any]) -> Contract:
    """Read a function's signature and Google-style docstring."""
    hints = typing.get_type_hints(function, include_extras=True)
    doc = inspect.getdoc(function) or ""
    args = _argument_docs(doc)
    materials, settings = [], []
    takes_work = False
    for name, parameter in inspect.signature(function).parameters.items():
        entry = Parameter(name, hints.get(name, Any), parameter.default, args.get(name, ""))
        if name == "work":
            takes_work = True
        elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            settings.append(entry)
        else:
            materials.append(entry)
    return Contract(
        function=function,
        act=doc.split("\n", 1)[0],
        doc=doc,
        materials=tuple(materials),
        settings=tuple(settings),
        returns=hints.get("return"),
        takes_work=takes_work,
    )


def _argument_docs(doc: str) -> dict[str, str]:
    """The `Args:` section as name -> one line."""
    found: dict[str, str] = {}
    name, inside, indent = "", False, 0
    for line in doc.splitlines():
        stripped = line.strip()
        if stripped == "Args:":
            inside, indent = True, 0
        elif inside and stripped and not line.startswith(" "):
            break
        elif inside and stripped:
            depth = len(line) - len(line.lstrip())
            indent = indent or depth
            head, colon, rest = stripped.partition(":")
            if depth == indent and colon and head.split(" ")[0].isidentifier():
                name = head.split(" ")[0]
                found[name] = rest.strip()
            elif name:
                found[name] += " " + stripped
    return found


def markdown_table() -> str:
    """All methods as a Markdown table: the one that README and docs carry."""
    lines = ["| command | what it does | paper | state |", "|---|---|---|---|"]
    for row in METHODS.values():
        page = Path("docs/methods") / f"{row.name}.md"
        command = f"[`calque {row.name.replace('/', ' ')}`]({page})"
        lines.append(f"| {command} | {row.act} | {row.paper or '-'} | works |")
    return "\n".join(lines)


def tree() -> str:
    """The source tree with the first line of each module's docstring: the one that the README carries."""
    import ast

    root = Path(__file__).parent
    lines = ["```"]
    for path in sorted(root.rglob("*.py"), key=lambda p: (p.relative_to(root).parts[:-1], p.name)):
        place = path.relative_to(root)
        doc = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
        if place.name == "__init__.py" and len(place.parts) > 1:
            lines.append(f"{place.parts[0]}/")
        elif place.name not in ("__init__.py", "__main__.py"):
            lines.append(f"{'  ' if len(place.parts) > 1 else ''}{place.name:<20} {doc.rstrip('.')}")
    return "\n".join([*lines, "```"])


_MARKS = (
    ("<!-- methods: generated, do not edit -->", "<!-- end of methods -->"),
    ("<!-- tree: generated, do not edit -->", "<!-- end of tree -->"),
)


def refresh(text: str, blocks: Iterable[str]) -> str:
    """Replace what stands between the marks of a page by the generated blocks: methods, tree."""
    for (begin, end), block in zip(_MARKS, blocks, strict=True):
        head, found, rest = text.partition(begin)
        _, closed, tail = rest.partition(end)
        if found and closed:
            text = f"{head}{begin}\n{block}\n{end}{tail}"
    return text


def _main(arguments: list[str]) -> int:
    """`python -m calque.registry --check|--write PAGE...` keeps the generated lists true."""
    stale = []
    for page in map(Path, arguments[1:]):
        table = markdown_table()
        if page.parent.name == "docs":
            table = table.replace("(docs/methods/", "(methods/")
        text = page.read_text(encoding="utf-8")
        fresh = refresh(text, (table, tree()))
        if fresh != text and arguments[0] == "--write":
            page.write_text(fresh, encoding="utf-8")
        elif fresh != text:
            stale.append(str(page))
    if stale:
        print(f"out of date: {', '.join(stale)}; run `make format`")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
