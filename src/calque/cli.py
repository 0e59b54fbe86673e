"""The command line: the commands of a run, and one command per method generated from its signature."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from calque import __version__, registry
from calque.errors import CalqueError, ConfigError, did_you_mean
from calque.machine import collect_rarely, follows
from calque.method_command import examples, method_command, named
from calque.progress import say, set_quiet

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


class _Group(click.Group):
    """A group whose unknown commands are answered with the nearest known ones."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            names = self.list_commands(ctx)
            hint = did_you_mean(args[0], names) or f"; known are {', '.join(names)}"
            raise ConfigError(f"no command '{ctx.command_path} {args[0]}'{hint}")
        return super().resolve_command(ctx, args)


class _Root(_Group):
    """The commands below, and one group per family of methods."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *registry.FAMILIES]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in registry.FAMILIES:
            return _Family(cmd_name, help=f"Methods: {registry.FAMILIES[cmd_name]}.")
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own = [(name, c.get_short_help_str(90)) for name, c in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(own)
        with formatter.section("Families of methods (calque FAMILY METHOD --help)"):
            formatter.write_dl(list(registry.FAMILIES.items()))


class _Family(_Group):
    """The methods of one family; a method's module is imported only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [m.name.split("/")[1] for m in registry.METHODS.values() if m.family == self.name]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        row = registry.METHODS.get(f"{self.name}/{cmd_name}")
        return method_command(row) if row else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(n, registry.METHODS[f"{self.name}/{n}"].act) for n in self.list_commands(ctx)]
        with formatter.section("Methods"):
            formatter.write_dl(rows)


@click.group(
    cls=_Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=examples(
        "calque adapt smollm2-135m --to nya --text bible-nya --parallel 'bible-eng|bible-nya' -o out/\n"
        "calque profile smollm2-135m --to swh --text corpus.txt"
    ),
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while working.")
@click.version_option(__version__, "-V", "--version", prog_name="calque")
def cli(quiet: bool) -> None:
    """Carry a pretrained language model over into a language it does not serve yet."""
    set_quiet(quiet or follows())
    # Some libraries would write progress of their own between our lines.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@cli.command(
    epilog=examples(
        "calque adapt smollm2-135m --to nya --text bible-nya --parallel 'bible-eng|bible-nya' "
        "--minutes 3 -o out/\n"
        "calque adapt ./my-model --to swh --text corpus/ --minutes 60 -o out/\n"
        "calque adapt ./my-model --to swh --text a.txt --test news=news.txt --recipe-only -o out/"
    )
)
@click.argument("model")
@click.option(
    "--to", "to", required=True, metavar="LANGUAGE", help="The language to reach: nya, nya_Latn, Chichewa."
)
@click.option(
    "--text", required=True, metavar="REF", help="Text in that language: file, folder, asset, hub id."
)
@click.option(
    "--parallel", metavar="REF", help="The same in both languages: TSV, 'a.en,a.ny', 'bible-eng|bible-nya'."
)
@click.option(
    "--source",
    default="eng_Latn",
    show_default=True,
    metavar="LANGUAGE",
    help="The language the model knows.",
)
@click.option("--source-text", metavar="REF", help="Text in it, to rehearse and to measure forgetting.")
@click.option(
    "--test",
    "tests",
    multiple=True,
    metavar="NAME=REF",
    help="More text in the new language to be tested on.",
)
@click.option("--minutes", type=float, default=30.0, show_default=True, help="Training time.")
@click.option(
    "--test-bytes", type=int, default=24_000, show_default=True, help="Held-out text that is scored."
)
@click.option("--replay", type=float, default=None, help="Share of training text in the source language.")
@click.option(
    "--keep-source",
    is_flag=True,
    help="Keep every old token and rehearse more: the old language loses little.",
)
@click.option(
    "--baseline", is_flag=True, help="Also train with the original vocabulary (LoRA and full), for as long."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--recipe-only", is_flag=True, help="Write OUT/recipe.yaml and stop, to edit it and run it later."
)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
def adapt(recipe_only: bool, out: Path, tests: Sequence[str], **given: Any) -> None:
    """Carry MODEL over into a language: checkpoint, scores and report.

    MODEL is a folder, a .gguf file, a hub id, an asset (`calque assets list`) or a PEFT adapter. The result
    is OUT/model, an ordinary Hugging Face folder, and OUT/report.html. The same command goes on with a run
    that was stopped.
    """
    from calque import adapt as job

    tested = dict(named(t, "test") for t in tests)
    if recipe_only:
        click.echo(job.write_recipe(out, tests=tested, **given))
    else:
        click.echo(job.adapt(out=out, tests=tested, command=_command(), **given))


@cli.command(epilog=examples("calque profile smollm2-135m --to nya --text bible-nya"))
@click.argument("model")
@click.option("--to", required=True, metavar="LANGUAGE", help="The language in question.")
@click.option("--text", required=True, metavar="REF", help="Text in that language.")
@click.option(
    "--source",
    default="eng_Latn",
    show_default=True,
    metavar="LANGUAGE",
    help="The language to compare with.",
)
@click.option("--source-text", metavar="REF", help="Text in it; without it, the language is not compared.")
@_JSON
def profile(as_json: bool, **given: Any) -> None:
    """How badly MODEL serves a language, what would help, and which command to run next."""
    from calque import profile as job

    found = job.profile(**given)
    click.echo(json.dumps(found.plain(), indent=1, ensure_ascii=False) if as_json else found.to_text())


@cli.command(
    epilog=examples(
        "calque run recipe.yaml -o out/\ncalque run out/recipe.yaml --set steps.train.with.minutes=10 -o out/"
    )
)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--set", "changes", multiple=True, metavar="PATH=VALUE", help="Change one value of the recipe.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Folder of the run [default: the recipe's]."
)
def run(recipe: Path, changes: Sequence[str], out: Path | None) -> None:
    """Run a recipe; steps that are done are skipped, a killed one goes on."""
    from calque import runner
    from calque.recipe import Recipe

    click.echo(runner.run(Recipe.read(recipe, changes), out or recipe.parent, command=_command()))


@cli.command(
    epilog=examples(
        "calque sweep recipe.yaml --over steps.trained.with.lr=1e-4,3e-4 --jobs 2 -o out/\n"
        "calque sweep recipe.yaml --over steps.trained.with.lr=1e-4,3e-4 --ray local -o out/"
    )
)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--over", multiple=True, required=True, metavar="PATH=VALUE,VALUE", help="An axis of the sweep."
)
@click.option("--set", "changes", multiple=True, metavar="PATH=VALUE", help="Change one value for all runs.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Runs at once.")
@click.option("--ray", metavar="ADDRESS", help="Run on a Ray cluster: its address, or 'local' to start one.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder of the sweep.")
def sweep(recipe: Path, over: Sequence[str], out: Path, **given: Any) -> None:
    """Run a recipe with every combination of some values; all scores land in OUT/table.parquet."""
    from calque import sweep as job

    click.echo(job.to_text(job.sweep(recipe, over, out, **given)))


@cli.command("list", epilog=examples("calque list\ncalque list vocab --json"))
@click.argument("family", required=False)
@_JSON
def list_methods(family: str | None, as_json: bool) -> None:
    """List the methods, of one FAMILY or all."""
    if family and family not in registry.FAMILIES:
        hint = did_you_mean(family, registry.FAMILIES)
        raise ConfigError(f"no family '{family}'{hint or '; known are ' + ', '.join(registry.FAMILIES)}")
    rows = [
        {"method": m.name, "act": m.act, "paper": m.paper}
        for m in registry.METHODS.values()
        if not family or m.family == family
    ]
    _print_rows(rows, as_json)


@cli.command(epilog=examples("calque tasks\ncalque tasks --json"))
@_JSON
def tasks(as_json: bool) -> None:
    """List the benchmarks that `calque evaluate run` knows."""
    from calque.evaluate.benchmark import titles

    _print_rows([{"task": name, "title": title} for name, title in titles().items()], as_json)


@cli.command(epilog=examples("calque show vocab/transtoken"))
@click.argument("name", metavar="FAMILY/METHOD")
def show(name: str) -> None:
    """Show a method's whole documentation."""
    row = registry.method(name)
    click.echo(f"{row.name} = {row.entry.replace(':', '.')}\n\n{registry.contract(row.load()).doc}")


@cli.command(epilog=examples("calque diff base/ tuned/\ncalque diff base/ tuned/ --json"))
@click.argument("one")
@click.argument("other")
@_JSON
def diff(one: str, other: str, as_json: bool) -> None:
    """What differs between two checkpoints: tensors, tokenizer, configuration."""
    from calque.analyze import diff as job
    from calque.model.checkpoint import Checkpoint

    table = job.diff(Checkpoint.open(one), Checkpoint.open(other))
    click.echo(json.dumps(list(table.rows()), indent=1) if as_json else job.to_text(table))


@cli.command(
    epilog=examples(
        "calque compare base.parquet adapted.parquet\n"
        "calque compare old=a/ new=b/ --metric chrf --out comparison.html"
    )
)
@click.argument("tables", nargs=-1, required=True)
@click.option("--baseline", default="", metavar="SYSTEM", help="Compare with it [default: the first].")
@click.option("--metric", multiple=True, help="A measure or metric [default: the headline of each task].")
@click.option("--by", multiple=True, metavar="COLUMN", help="Group by it, task apart [default: language].")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write .html, .csv, .parquet, .tex, .md or .json."
)
@_JSON
def compare(tables: Sequence[str], out: Path | None, as_json: bool, baseline: str, **given: Any) -> None:
    """Compare the systems in TABLES item by item: differences, intervals, adjusted tests.

    TABLES are files (.parquet, .jsonl) or folders of runs and steps, each also as NAME=PATH.
    """
    from calque.evaluate import compare as job

    asked: Any = {name: list(values) or None for name, values in given.items()}
    found = job.compare(job.read(tables), baseline=baseline, **asked)
    if out:
        from calque.report.comparison import write_comparison

        write_comparison(found, out)
    click.echo(json.dumps(found.plain(), indent=1, ensure_ascii=False) if as_json else found.to_text())


@cli.command(epilog=examples("calque report out/"))
@click.argument("out", type=click.Path(path_type=Path))
def report(out: Path) -> None:
    """Write OUT/report.html anew from what the run folder holds."""
    from calque.report.html import write_report

    click.echo(write_report(out, out / "report.html"))


@cli.command(epilog=examples("calque doctor\ncalque doctor --json"))
@_JSON
def doctor(as_json: bool) -> None:
    """Versions, cores, memory, threads, bf16, caches and free disk: what a bug report needs."""
    from calque.machine import examine

    found = examine()
    _print_rows([{"what": k, "is": v} for k, v in found.items()], False) if not as_json else click.echo(
        json.dumps(found, indent=1)
    )


@cli.command(epilog=examples('eval "$(calque completion bash)"'))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell, to be evaluated in its start file."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "calque", "_CALQUE_COMPLETE").source())


@cli.group(cls=_Group)
def assets() -> None:
    """Open models and texts, fetched on demand and pinned by hash and licence."""


@assets.command("list")
@_JSON
def assets_list(as_json: bool) -> None:
    """List them: kind, size, licence, and whether they are in the cache."""
    from calque import assets as store

    _print_rows([row.plain() for row in store.list_assets()], as_json)


@assets.command("get", epilog=examples("calque assets get smollm2-135m kolibri"))
@click.argument("names", nargs=-1, required=True)
def assets_get(names: Sequence[str]) -> None:
    """Fetch NAMES into the cache, unless they are there."""
    from calque import assets as store

    for name in names:
        click.echo(store.get(name))


@assets.command("where")
@click.argument("name")
def assets_where(name: str) -> None:
    """Print the folder of an asset in the cache."""
    from calque import assets as store

    click.echo(store.where(name))


@assets.command("clear")
@click.argument("name", required=False)
def assets_clear(name: str | None) -> None:
    """Remove NAME from the cache, or everything."""
    from calque import assets as store

    store.clear(name)


def _print_rows(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """A list of rows as JSON, or as an aligned table that ends at the terminal's edge."""
    if as_json:
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    if not rows:
        return
    names = list(rows[0])
    cells = [[str(row[n]) for n in names] for row in rows]
    widths = [max(len(c[i]) for c in [names, *cells]) for i in range(len(names))]
    for cell in [names, *cells]:
        click.echo("  ".join(text.ljust(width) for text, width in zip(cell, widths, strict=True)).rstrip())


def _command() -> str:
    import shlex

    return shlex.join(["calque", *sys.argv[1:]])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error meant for the user ends with its message and exit code 2."""
    finish: Callable[[int], Any] = sys.exit
    collect_rarely()
    try:
        code = cli.main(args=arguments, prog_name="calque", standalone_mode=False)
        finish(code if isinstance(code, int) else 0)
    except CalqueError as error:
        click.echo(f"calque: {error}", err=True)
        finish(2)
    except click.ClickException as error:
        error.show()
        finish(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        say("stopped; the same command goes on where this one ended")
        finish(130)
