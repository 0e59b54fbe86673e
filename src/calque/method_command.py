"""One command per method, generated from its signature: materials are arguments, settings are options."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from calque import registry
from calque.errors import ConfigError
from calque.machine import follows
from calque.progress import say


def examples(text: str) -> str:
    """An 'Examples' paragraph that click leaves as it is written."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in text.strip().splitlines())


def method_command(row: registry.Method) -> click.Command:
    """Build `calque FAMILY METHOD` from the method's signature and docstring."""
    says = registry.contract(row.load())
    params: list[click.Parameter] = []
    for m in says.materials:
        if m.required and not _is_many(m.annotation):
            params.append(click.Argument([m.name], metavar=m.name.upper()))
        else:
            many = _is_many(m.annotation)
            metavar = "NAME=REF" if _is_mapping(m.annotation) else "REF"
            text = f"{m.help}  [repeatable]" if many else m.help
            params.append(
                click.Option([_flag(m.name)], required=m.required, multiple=many, metavar=metavar, help=text)
            )
    params += [_setting_option(s) for s in says.settings]
    params.append(
        click.Option(
            ["-o", "--out"],
            required=True,
            type=click.Path(path_type=Path),
            help="Folder for the result and its manifest.json; must not exist.",
        )
    )

    is_search = says.takes_work  # it knows what it would write only after it has written its candidates
    rewrites = getattr(says.returns, "__name__", "") == "Rewrite"
    if rewrites and not is_search:
        note = "Print what would be read, computed and written, with the estimated time; write nothing."
        params.append(click.Option(["--dry-run"], is_flag=True, help=note))

    def callback(out: Path, dry_run: bool = False, **given: Any) -> None:
        from calque import runner

        of = {
            m.name: _material(given[m.name], m)
            for m in says.materials
            if given[m.name] is not None and given[m.name] != ()
        }
        settings = {s.name: given[s.name] for s in says.settings if given[s.name] not in (None, ())}
        if dry_run:
            click.echo(runner.plan(row.name, of, settings, out))
        else:
            runner.call(row.name, of, settings, out)
            if not follows():
                click.echo(out)
            if rewrites:
                say(f"`calque report {out}` shows what was done")

    return click.Command(
        row.name.split("/")[1],
        params=params,
        callback=callback,
        help=f"{_help_text(says)}\n\n{examples(_example(row, says))}",
        short_help=row.act,
    )


def _example(row: registry.Method, says: registry.Contract) -> str:
    """The shortest call that can be right: everything that is required."""
    words = ["calque", *row.name.split("/")]
    words += [m.name.upper() for m in says.materials if m.required and not _is_many(m.annotation)]
    for m in says.materials:
        if m.required and _is_many(m.annotation):
            given = ("NAME=REF",) if _is_mapping(m.annotation) else ("A", "B")
            words += [word for value in given for word in (_flag(m.name), value)]
    words += [word for s in says.settings if s.required for word in (_flag(s.name), s.name.upper())]
    return " ".join([*words, "-o", "out/"])


def _help_text(says: registry.Contract) -> str:
    """The docstring without its Args section (the options say that), its paragraphs kept as written."""
    kept, inside = [], False
    for line in says.doc.splitlines():
        if line.strip() == "Args:":
            inside = True
        elif inside and line.strip() and not line.startswith(" "):
            inside = False
        if not inside:
            kept.append(line)
    paragraphs = "\n".join(kept).strip().split("\n\n")
    return "\n\n".join([paragraphs[0], *("\b\n" + p for p in paragraphs[1:] if p.strip())])


def _setting_option(setting: registry.Parameter) -> click.Option:
    kind = setting.annotation
    bare, notes = _unannotated(kind)
    shown = "" if setting.default is None or setting.required else f"  [default: {setting.default}]"
    text = setting.help + shown
    flag = _flag(setting.name)
    if bare is bool:
        return click.Option([f"{flag}/--no-{flag[2:]}"], default=None, help=text)
    many = _is_many(bare) and not _is_mapping(bare)
    element = _unannotated(typing.get_args(bare)[0])[0] if many else bare
    if many:
        text += "  [repeatable]"
    name = getattr(element, "__name__", str(element)).upper().replace("STR", "TEXT")
    metavar, choice = f"{name} {_bounds(notes)}".strip(), None
    if typing.get_origin(element) is typing.Literal:
        metavar, choice = None, click.Choice([str(c) for c in typing.get_args(element)])
    return click.Option(
        [flag], required=setting.required, multiple=many, metavar=metavar, type=choice, help=text
    )


def _unannotated(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """(type without Annotated and None, its annotations)."""
    notes: tuple[Any, ...] = ()
    while True:
        args = typing.get_args(kind)
        if hasattr(kind, "__metadata__"):
            kind, notes = args[0], notes + tuple(kind.__metadata__)
        elif args and type(None) in args:
            kind = next(a for a in args if a is not type(None))
        else:
            return kind, notes


def _bounds(notes: Iterable[Any]) -> str:
    """Ranges as a person writes them: >0, <=1."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    found = []
    for note in notes:
        for name, sign in signs.items():
            value = getattr(note, name, None)
            if value is not None:
                found.append(f"{sign}{value}")
    return ",".join(found)


def _is_mapping(annotation: Any) -> bool:
    origin = typing.get_origin(_unannotated(annotation)[0])
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _is_many(annotation: Any) -> bool:
    origin = typing.get_origin(_unannotated(annotation)[0])
    return isinstance(origin, type) and issubclass(origin, Mapping | Sequence)


def _material(value: Any, parameter: registry.Parameter) -> Any:
    if _is_mapping(parameter.annotation):
        return dict(named(v, parameter.name) for v in value)
    return list(value) if isinstance(value, tuple) else value


def named(text: str, what: str) -> tuple[str, str]:
    """Split NAME=REFERENCE."""
    name, equals, ref = text.partition("=")
    if not equals or not name or not ref:
        raise ConfigError(f"--{what} {text}: write it as NAME=REFERENCE")
    return name, ref


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
