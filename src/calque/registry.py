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

FAMILIES = {
    "data": "texts in, texts out: read, split, align",
    "vocab": "tokenizers, and maps from a new vocabulary to an old one",
    "delta": "additions to a model that train while it stays as it is",
    "train": "the training loop",
    "merge": "new checkpoints computed from old ones, streamed",
    "evaluate": "item-level tables of scores",
    "analyze": "what models are like inside, and how they differ",
}


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


def _rows(*rows: tuple[str, str, str, str]) -> dict[str, Method]:
    return {name: Method(name, entry, act, paper) for name, entry, act, paper in rows}


_WECHSEL = "Minixhofer et al. 2022, arXiv:2112.06598"
_TRANS = "Remy et al. 2024, arXiv:2408.04303"
_FOCUS = "Dobler and de Melo 2023, arXiv:2305.14481"
_ILHARCO = "Ilharco et al. 2023, arXiv:2212.04089"
_TIES = "Yadav et al. 2023, arXiv:2306.01708"
_CRUMBS = "Davari and Belilovsky 2024, arXiv:2312.06795"
_LORA = "Hu et al. 2022, arXiv:2106.09685"
_UNIFIED = "He et al. 2022, arXiv:2110.04366"
_LAYERSWAP = "Bandarkar et al. 2025, arXiv:2410.01335"
_FAST_ALIGN = "Dyer et al. 2013, NAACL"

METHODS: dict[str, Method] = _rows(
    ("data/corpus", "calque.data.prepare:corpus", "read, clean and split a text or parallel text", ""),
    ("data/align", "calque.data.align:lexicon", "word translations from parallel text", _FAST_ALIGN),
    (
        "vocab/tokenizer",
        "calque.vocab.tokenizer:train_tokenizer",
        "train or extend a tokenizer on a text",
        "",
    ),
    ("vocab/random", "calque.vocab.random:random", "new rows from Normal(mean, std): the floor", ""),
    ("vocab/mean", "calque.vocab.mean:mean", "new rows are the mean of all old rows", ""),
    ("vocab/overlap", "calque.vocab.overlap:overlap", "copy the rows of tokens with equal bytes", ""),
    ("vocab/subword", "calque.vocab.subword:subword", "new rows are the mean of their old pieces", ""),
    ("vocab/focus", "calque.vocab.focus:focus", "mix overlapping rows by auxiliary similarity", _FOCUS),
    ("vocab/wechsel", "calque.vocab.wechsel:wechsel", "mix rows by aligned static word vectors", _WECHSEL),
    ("vocab/transtoken", "calque.vocab.transtoken:transtoken", "mix rows by translation counts", _TRANS),
    (
        "merge/transplant",
        "calque.merge.transplant:transplant",
        "put a new vocabulary into a checkpoint",
        _TRANS,
    ),
    (
        "merge/calibrate",
        "calque.merge.calibrate:calibrate",
        "make new tokens as probable as they are frequent",
        "",
    ),
    ("merge/linear", "calque.merge.linear:linear", "weighted average", "Wortsman et al. 2022"),
    ("merge/task_arithmetic", "calque.merge.task_arithmetic:task_arithmetic", "add up differences", _ILHARCO),
    ("merge/slerp", "calque.merge.slerp:slerp", "go along the arc between two models", "Shoemake 1985"),
    ("merge/ties", "calque.merge.ties:ties", "trim over the whole model, elect signs, average", _TIES),
    ("merge/ties_per_tensor", "calque.merge.ties:ties_per_tensor", "ties, every tensor by itself", ""),
    (
        "merge/dare",
        "calque.merge.dare:dare",
        "drop changes at random, rescale the rest",
        "Yu et al. 2024 (DARE)",
    ),
    ("merge/della", "calque.merge.della:della", "drop small changes more often", "Deep et al. 2024"),
    ("merge/breadcrumbs", "calque.merge.breadcrumbs:breadcrumbs", "drop small changes and outliers", _CRUMBS),
    (
        "merge/model_stock",
        "calque.merge.model_stock:model_stock",
        "go as far as angles say",
        "Jang et al. 2024",
    ),
    ("merge/passthrough", "calque.merge.passthrough:passthrough", "stack layers", "Kim et al. 2024"),
    ("merge/pcb", "calque.merge.pcb:pcb", "weigh every parameter of every model", "Du et al. 2024"),
    ("merge/pcb_search", "calque.merge.pcb_search:pcb_search", "pcb with searched scales", "Du et al. 2024"),
    ("merge/widen", "calque.merge.widen:widen", "rank changes inside each model", "Yu et al. 2024 (WIDEN)"),
    (
        "merge/layerswap",
        "calque.merge.layerswap:layerswap",
        "outer layers of a language expert around a task expert",
        _LAYERSWAP,
    ),
    (
        "merge/layerswap_search",
        "calque.merge.layerswap_search:layerswap_search",
        "search the layers to swap on validation texts",
        _LAYERSWAP,
    ),
    ("merge/run", "calque.merge.run:run", "do what a mergekit YAML file says", ""),
    ("merge/fold", "calque.merge.fold:fold", "fold an adapter or a delta into its base", _LORA),
    (
        "merge/extract_lora",
        "calque.merge.extract_lora:extract_lora",
        "the difference of two checkpoints as a low-rank adapter",
        _LORA,
    ),
    (
        "merge/upcycle",
        "calque.merge.upcycle:upcycle",
        "dense to experts by language family in the last layers",
        "Zheng et al. 2025, arXiv:2410.10626",
    ),
    (
        "merge/recurse",
        "calque.merge.recurse:recurse",
        "tie layers into a loop with low-rank residuals",
        "Bae et al. 2025, arXiv:2410.20672",
    ),
    ("delta/lora", "calque.delta.lora:lora", "low-rank pairs at linear maps", _LORA),
    (
        "delta/shards",
        "calque.delta.shards:shards",
        "low-rank pairs made of shards that layers share",
        "Wang et al. 2025, arXiv:2410.00938",
    ),
    (
        "delta/depthwise",
        "calque.delta.depthwise:depthwise",
        "low-rank pairs at each depth of a looped model",
        "Bae et al. 2025, arXiv:2410.20672",
    ),
    (
        "delta/bottleneck",
        "calque.delta.bottleneck:bottleneck",
        "small networks after or beside the halves of a layer",
        "Houlsby et al. 2019, Pfeiffer et al. 2020",
    ),
    ("delta/prefix", "calque.delta.prefix:prefix", "trained keys and values before the text", _UNIFIED),
    (
        "delta/sparse",
        "calque.delta.sparse:sparse",
        "the weights that a training moved most, to train alone",
        "Ansell et al. 2022, arXiv:2110.07560",
    ),
    ("delta/mam", "calque.delta.mam:mam", "a prefix and scaled parallel networks", _UNIFIED),
    (
        "delta/mixture",
        "calque.delta.mixture:mixture",
        "deltas weighed by trained routers, or one for each language",
        "Li et al. 2023, arXiv:2308.06552",
    ),
    ("delta/grid", "calque.grid:grid", "forms x places x budgets on one text, one table", _UNIFIED),
    ("train/lm", "calque.train.lm:lm", "continue causal language modelling on a text", _TRANS),
    (
        "train/denoise",
        "calque.train.denoise:denoise",
        "restore masked tokens or cut-out spans of a text",
        "Devlin et al. 2019, Raffel et al. 2020",
    ),
    ("train/tune", "calque.train.tune:tune", "tune on examples: answers, labels, spans, rankings", ""),
    ("evaluate/lm", "calque.evaluate.lm:lm", "bits per byte of held-out documents", ""),
    (
        "evaluate/generation",
        "calque.evaluate.generation:generation",
        "samples, and the time to write them",
        "",
    ),
    (
        "evaluate/tokenization",
        "calque.evaluate.tokenization:tokenization",
        "how a tokenizer serves a text",
        "",
    ),
    ("evaluate/floors", "calque.evaluate.floors:floors", "what no model at all would reach", ""),
    (
        "evaluate/vectors",
        "calque.evaluate.vectors:vectors",
        "is a translation the nearest vector? words and sentences, layer by layer",
        "Green et al. 2022, arXiv:2208.01018",
    ),
    (
        "evaluate/ranking",
        "calque.evaluate.ranking:ranking",
        "MAP, nDCG, MRR and recall of rankings, as trec_eval",
        "Buckley and Voorhees 2000",
    ),
    (
        "evaluate/forgetting",
        "calque.evaluate.forgetting:forgetting",
        "small classifiers: train on A, test on B, tune on B, test on A again",
        "Thangaraj et al. 2024, arXiv:2409.10965",
    ),
    ("evaluate/run", "calque.evaluate.run:run", "ask models the items of benchmarks", ""),
    ("evaluate/score", "calque.evaluate.score:score", "score answers that a file holds", ""),
    ("evaluate/compare", "calque.evaluate.compare:compare", "systems on common items, tested in pairs", ""),
    ("evaluate/export", "calque.evaluate.harness:export", "benchmarks as tasks of lm-eval", ""),
    ("evaluate/import", "calque.evaluate.harness:import_results", "results of lm-eval as a table", ""),
    ("analyze/diff", "calque.analyze.diff:diff", "what differs between two checkpoints", ""),
    ("analyze/shift", "calque.analyze.shift:shift", "where tuned models moved, layer by role", _LAYERSWAP),
)


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
        return {name: getattr(checked, name) for name in names}


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
