"""Recipes: chains of methods that run, skip what is done, and resume after a kill.

A recipe is a YAML file:

    title: carry X over into Y
    seed: 0
    steps:
      text:                       # a step = one method, its material by name, its settings
        do: data/corpus
        of: {source: corpus.txt}
        with: {language: nya_Latn}
      tokenizer:
        do: vocab/tokenizer
        of: {base: model/, text: text}      # 'text' is the step above; 'model/' is not a step: a reference
        with: {mode: extend}
    product: some_step            # optional: the checkpoint that becomes OUT/model
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calque import disk, registry
from calque.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Step:
    """One call of one method: `of` its material (references, names of earlier steps), `with` its settings."""

    name: str
    do: str
    of: Mapping[str, Any]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """An ordered chain of steps."""

    steps: tuple[Step, ...]
    title: str = ""
    seed: int = 0
    product: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, changes: Sequence[str] = ()) -> Recipe:
        """Read a recipe file and apply changes of the form "steps.lm.with.steps=500".

        Raises:
            ConfigError: The file is not a recipe, or a change does not parse.
        """
        import yaml

        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"no recipe {path}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid YAML: {error}") from None
        for change in changes:
            _apply(raw, change)
        return cls.parse(raw, str(path))

    @classmethod
    def parse(cls, raw: Any, where: str) -> Recipe:
        """Build a recipe from its plain form and check every step before any is run."""
        if not isinstance(raw, dict) or not isinstance(raw.get("steps"), dict) or not raw["steps"]:
            raise ConfigError(f"{where}: a recipe needs 'steps': a name for each, with 'do', 'of' and 'with'")
        _only(raw, ("title", "seed", "steps", "product", "about"), where)
        steps = []
        for name, body in raw["steps"].items():
            place = f"{where}: step '{name}'"
            if not isinstance(name, str) or not name.replace("_", "").replace("-", "").isalnum():
                raise ConfigError(f"{place}: a name is made of letters, digits, '_' and '-'")
            if not isinstance(body, dict) or not isinstance(body.get("do"), str):
                raise ConfigError(f"{place}: needs 'do: family/method'")
            _only(body, ("do", "of", "with"), place)
            steps.append(Step(name, body["do"], body.get("of") or {}, body.get("with") or {}))
        recipe = cls(
            tuple(steps),
            raw.get("title") or "",
            int(raw.get("seed") or 0),
            raw.get("product") or "",
            raw.get("about") or {},
        )
        recipe._check(where)
        return recipe

    def plain(self) -> dict[str, Any]:
        """The form that `parse` reads and YAML writes."""
        steps = {s.name: {"do": s.do, "of": plain(s.of), "with": plain(s.settings)} for s in self.steps}
        head: dict[str, Any] = {"title": self.title, "seed": self.seed}
        if self.about:
            head["about"] = plain(self.about)
        return {**head, "steps": steps, **({"product": self.product} if self.product else {})}

    def write(self, path: Path) -> None:
        """Write the recipe as YAML, atomically."""
        import yaml

        disk.write_text(path, yaml.safe_dump(self.plain(), sort_keys=False, allow_unicode=True, width=110))

    def _check(self, where: str) -> None:
        known: set[str] = set()
        for step in self.steps:
            place = f"{where}: step '{step.name}' ({step.do})"
            says = registry.contract(registry.method(step.do).load())
            says.validate(seeded(step.settings, says, self.seed), place)
            names = [m.name for m in says.materials]
            for name in step.of:
                if name not in names:
                    hint = did_you_mean(name, names) or f"; it takes {', '.join(names)}"
                    raise ConfigError(f"{place}: no material '{name}'{hint}")
            for material in says.materials:
                if material.required and material.name not in step.of:
                    raise ConfigError(f"{place}: material '{material.name}' is missing from 'of'")
            later = {s.name for s in self.steps} - known
            for ref in references(step.of):
                if ref in later:
                    raise ConfigError(f"{place}: uses step '{ref}', which comes later (or is itself)")
            known.add(step.name)
        if self.product and self.product not in known:
            raise ConfigError(f"{where}: product '{self.product}' is not a step")


def seeded(settings: Mapping[str, Any], says: registry.Contract, seed: int) -> dict[str, Any]:
    """The recipe's seed, for a method that takes one and is not given another."""
    takes_seed = any(s.name == "seed" for s in says.settings)
    return {"seed": seed, **settings} if takes_seed else dict(settings)


def plain(value: Any) -> Any:
    """Only what JSON and YAML know."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def references(value: Any) -> Iterator[str]:
    """Every reference in a step's material, in order."""
    if isinstance(value, str | Path):
        yield str(value)
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from references(inner)


def _apply(raw: Any, change: str) -> None:
    """Apply "a.b.c=value" (value read as YAML) to a nested dictionary."""
    import yaml

    path, equals, value = change.partition("=")
    *parents, last = path.split(".")
    place = raw
    for name in parents:
        if not isinstance(place, dict) or name not in place:
            known = list(place) if isinstance(place, dict) else []
            raise ConfigError(f"--set {change}: no '{name}'{did_you_mean(name, map(str, known))}")
        if place[name] is None:
            place[name] = {}
        place = place[name]
    if not equals or not isinstance(place, dict):
        raise ConfigError(f"--set {change}: write it as steps.NAME.with.SETTING=VALUE")
    place[last] = yaml.safe_load(value)


def _only(raw: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    for name in raw:
        if name not in allowed:
            hint = did_you_mean(str(name), allowed) or f"; known are {', '.join(allowed)}"
            raise ConfigError(f"{where}: unknown '{name}'{hint}")
