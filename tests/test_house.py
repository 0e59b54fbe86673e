"""The rules of the house that a machine can check."""

import ast
import re
from pathlib import Path

import pytest

from calque import registry

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
METHODS = sorted(registry.METHODS)


def module_of(name):
    return ROOT / "src" / (registry.METHODS[name].entry.split(":")[0].replace(".", "/") + ".py")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_its_four_files(name):
    family = name.split("/")[0]
    module = module_of(name)
    assert module.is_file()
    tests = [p for p in (ROOT / "tests" / family).glob("test_*.py") if module.stem in p.read_text()]
    assert tests, f"no test in tests/{family} speaks of {module.stem}"
    page = ROOT / "docs/methods" / f"{name}.md"
    assert page.is_file() and len(page.read_text()) > 300


def test_every_page_belongs_to_a_method():
    pages = {str(p.relative_to(ROOT / "docs/methods"))[:-3] for p in (ROOT / "docs/methods").rglob("*.md")}
    assert pages == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_documented_and_typed(name):
    says = registry.contract(registry.METHODS[name].load())
    assert says.act.endswith(".") and len(says.act) < 110
    assert says.materials, "a method works on material"
    for parameter in (*says.materials, *says.settings):
        assert parameter.help, f"{name}: '{parameter.name}' is not in Args"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= 60, f"{node.name} has {lines} lines"


def test_nothing_runs_foreign_code():
    forbidden = re.compile(
        r"torch\.load\(|\bpickle\b\.|yaml\.load\(|trust_remote_code\s*=\s*True|shell=True|\beval\(|\bexec\("
    )
    found = [
        f"{path.name}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if forbidden.search(line) and "model.eval(" not in line and ".eval()" not in line
    ]
    assert found == []


def test_the_tree_in_the_readme_names_every_module():
    readme = (ROOT / "README.md").read_text()
    missing = [
        p.name for p in SOURCES if p.name not in readme and p.name not in ("__init__.py", "__main__.py")
    ]
    assert missing == []


def test_a_benchmark_has_its_three_files():
    tasks = {p.stem for p in (ROOT / "src/calque/evaluate/tasks").glob("*.py")} - {"__init__"}
    assert tasks == {p.stem for p in (ROOT / "docs/tasks").glob("*.md")}
    tested = {p.stem.removeprefix("test_") for p in (ROOT / "tests/evaluate/tasks").glob("test_*.py")}
    assert tasks == tested
    for name in tasks:
        assert len((ROOT / f"src/calque/evaluate/tasks/{name}.py").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", ["README.md", "docs/methods.md"])
def test_generated_lists_are_fresh(page, capsys):
    assert registry._main(["--check", str(ROOT / page)]) == 0, capsys.readouterr().out
