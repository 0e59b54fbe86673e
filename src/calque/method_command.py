"""One command per method, generated from its signature: materials are arguments, settings are options."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from calque import registry
from calque.errors import ConfigError


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
            note = " NAME=REF, may be given several times." if _is_mapping(m.annotation) else ""
            many = _is_many(m.annotation)
            params.append(
                click.Option(
                    [_flag(m.name)], required=m.required, multiple=many, metavar="REF", help=m.help + note
                )
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

    if getattr(says.returns, "__name__", "") == "Rewrite":
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
            click.echo(out)

    required = " ".join(m.name.upper() for m in says.materials if m.required and not _is_many(m.annotation))
    example = f"calque {row.name.replace('/', ' ')} {required} -o out/"
    return click.Command(
        row.name.split("/")[1],
        params=params,
        callback=callback,
        help=f"{_help_text(says)}\n\n{examples(example)}",
        short_help=row.act,
    )


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
    if typing.get_origin(bare) is typing.Literal:
        choices = [str(c) for c in typing.get_args(bare)]
        return click.Option([flag], type=click.Choice(choices), required=setting.required, help=text)
    name = getattr(bare, "__name__", str(bare)).upper().replace("STR", "TEXT")
    bounds = _bounds(notes)
    metavar = f"{name} {bounds}" if bounds else name
    return click.Option(
        [flag],
        required=setting.required,
        multiple=_is_many(bare) and not _is_mapping(bare),
        metavar=metavar,
        help=text,
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
