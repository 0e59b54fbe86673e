import itertools
import re
import shutil
from html.parser import HTMLParser

import pytest

from calque import disk
from calque.errors import DataError
from calque.evaluate.table import Table
from calque.report.html import number, percent, summary, write_report
from calque.report.run import Run

from .conftest import HOSTILE, PERSIAN, STEPS, make_run

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Collects tags, ids, addresses and text; every element must be closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.addresses, self.said, self.open = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append((tag, given))
        self.ids += [given["id"]] if "id" in given else []
        self.addresses += [
            v for k, v in given.items() if k in ("src", "href", "xlink:href", "action", "data")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append(data)

    @property
    def text(self):
        return " ".join(self.said)


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    return Page(write_report(run, tmp_path_factory.mktemp("page") / "report.html").read_text("utf-8"))


def test_every_section_is_there(page):
    headings = [g["id"] for tag, g in page.tags if tag == "section"]
    assert headings == ["scores", "forgetting", "curves", "pieces", "origins", "samples", "cost", "again"]
    for words in (
        "2.0",
        "0.46×",
        "Chichewa, heldout",
        "Mulungu",
        "1,000 characters",
        "repetition",
        "calque adapt",
    ):
        assert words in page.text
    assert "Not in this report" not in page.text


def test_nothing_is_fetched_and_nothing_runs(page):
    assert not [
        tag for tag, _ in page.tags if tag in ("script", "iframe", "img", "object", "embed", "form", "base")
    ]
    assert all(address == "data:," or address.startswith("#") for address in page.addresses)
    assert not [k for _, given in page.tags for k in given if k.startswith("on")]
    (policy,) = [g["content"] for tag, g in page.tags if tag == "meta" and g.get("http-equiv")]
    assert policy.startswith("default-src 'none';") and "script" not in policy
    style = page.text
    assert "@import" not in style and not re.search(r"url\((?!#)", style)


def test_text_from_corpora_and_models_is_text(hostile, tmp_path):
    text = write_report(hostile, tmp_path / "r.html").read_text("utf-8")
    assert "<script" not in text and text.count("&lt;script&gt;") > 10
    shown = Page(text)
    assert HOSTILE in shown.text and PERSIAN in shown.text
    marked = [g for tag, g in shown.tags if tag in ("blockquote", "p", "h3") and g.get("dir") == "auto"]
    assert len(marked) > 10


def test_ids_are_unique_and_tables_have_headers(page):
    assert len(page.ids) == len(set(page.ids))
    tables = sum(tag == "table" for tag, _ in page.tags)
    assert tables >= 6
    heads = [given for tag, given in page.tags if tag == "th"]
    assert heads and all(given.get("scope") in ("col", "row") for given in heads)
    assert all(g.get("aria-label") for tag, g in page.tags if g.get("role") in ("img", "region"))
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(headings))


def test_the_same_run_gives_the_same_page(run, tmp_path):
    first = write_report(run, tmp_path / "a.html").read_bytes()
    assert first == write_report(run, tmp_path / "b.html").read_bytes()


@pytest.mark.parametrize(
    ("steps", "sections"),
    [
        ((), ["again"]),
        (("text",), ["cost", "again"]),
        (("text", "map"), ["origins", "cost", "again"]),
        (("trained",), ["curves", "cost", "again"]),
        (("scores",), ["scores", "forgetting", "cost", "again"]),
        (("floors",), ["scores", "cost", "again"]),
        (("tokenization", "map"), ["pieces", "origins", "cost", "again"]),
        (("generation",), ["samples", "cost", "again"]),
    ],
)
def test_an_unfinished_run_has_the_sections_it_has_material_for(tmp_path, steps, sections):
    folder = make_run(tmp_path / "run", steps)
    (folder / "run.json").unlink()
    found = Page(write_report(folder, tmp_path / "r.html").read_text("utf-8"))
    assert [g["id"] for tag, g in found.tags if tag == "section"] == sections
    assert "This run is not finished" in found.text and "Not in this report" in found.text
    assert ("learning curves (no training step with a log)" in found.text) == ("curves" not in sections)
    assert summary(folder).startswith("SmolLM2-135M carried over")


def test_the_summary_names_every_system_and_text(run):
    text = summary(run)
    for words in ("bits per byte", "Chichewa, heldout", "English", "LoRA, old vocabulary", "zstd", "0.36x"):
        assert words in text
    assert "not finished" not in text
    assert max(map(len, text.splitlines())) < 110


def test_roles_are_read_from_recipe_and_manifests(run):
    found = Run.read(run)
    assert (found.base, found.product) == ("base", "adapted")
    assert found.systems[:3] == ["base", "start", "adapted"]
    assert found.missing == () and len(found.steps) == len(STEPS)


def test_scores_that_repeat_keys_are_left_out_and_said(tmp_path):
    folder = make_run(tmp_path / "run", ("scores",))
    shutil.copytree(folder / "steps/scores", folder / "steps/again")
    found = Page(write_report(folder, tmp_path / "r.html").read_text("utf-8"))
    assert "step “again” repeat those of an earlier step" in found.text


def test_one_document_has_no_interval(tmp_path):
    folder = make_run(tmp_path / "run", ())
    rows = [
        {
            "system": system, "task": "lm/t", "language": "xxx_Latn", "item": "d", "metric": metric,
            "value": value, "signature": "s",
        }
        for system, bits in (("base", 4.0), ("new", 2.0))
        for metric, value in (("bits", bits), ("bytes", 1.0), ("tokens", 1.0))
    ]  # fmt: skip
    where = folder / "steps/scores"
    where.mkdir(parents=True)
    Table.of(rows).save(where / "table.parquet")
    found = Page(write_report(folder, tmp_path / "r.html").read_text("utf-8"))
    assert "one document" in found.text and "xxx_Latn, t" in found.text and "nan" not in found.text


def test_damaged_runs_are_named(tmp_path):
    with pytest.raises(DataError, match="no run folder"):
        write_report(tmp_path / "nothing", tmp_path / "r.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"neither recipe\.yaml nor steps/"):
        write_report(tmp_path / "empty", tmp_path / "r.html")
    folder = make_run(tmp_path / "run", ("trained", "map"))
    disk.write_text(folder / "steps/trained/log.jsonl", '{"seconds": 1}\n{"seconds"\n')
    with pytest.raises(DataError, match=r"log\.jsonl:2: not a line of a training log"):
        write_report(folder, tmp_path / "r.html")
    disk.write_text(folder / "steps/trained/log.jsonl", "")
    disk.write_text(folder / "steps/map/provenance.tsv", "id\n1\ttwo\n")
    with pytest.raises(DataError, match=r"provenance\.tsv:2: expected id"):
        write_report(folder, tmp_path / "r.html")
    disk.write_text(folder / "recipe.yaml", "steps: [")
    with pytest.raises(DataError, match="not valid YAML"):
        write_report(folder, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_numbers_are_short():
    assert [number(v) for v in (0.0814, 2.134, 41.51, 1204.4)] == ["0.081", "2.13", "41.5", "1,204"]
    assert [percent(v) for v in (0, 0.0002, 0.0042, 0.07, 0.613)] == [
        "0 %",
        "< 0.1 %",
        "0.4 %",
        "7.0 %",
        "61 %",
    ]
