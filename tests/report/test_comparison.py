"""The report of a comparison: every number is there, and nothing of the material becomes markup."""

import json
import re

import pytest

from calque.cli import main
from calque.errors import DataError
from calque.evaluate.compare import compare
from calque.evaluate.table import Table
from calque.report.comparison import write_comparison

from .conftest import answers


def test_the_page_holds_every_number_and_no_script(quizzes, tmp_path):
    found = compare({"t": quizzes})
    text = write_comparison(found, tmp_path / "c.html").read_text()
    assert "<script" not in text and "http-equiv" in text
    assert "&lt;script&gt;" in text and "default-src 'none'" in text
    assert text.count('<svg class="chart') == 2 and "var(--product)" in text
    for row in found.rows():
        assert f"{row['difference']:+.3f}" in text and f"{row['p_holm']:.4f}" in text
    assert "--tint-of:var(--worse)" in text and "--tint-of:var(--product)" in text
    assert "better than base in 1 of 2 languages" in text


def test_a_difference_that_is_not_clear_is_faint(tmp_path):
    found = compare({"t": Table.of(answers("base", 0, count=10) + answers("new", 1, count=10))})
    text = write_comparison(found, tmp_path / "c.html").read_text()
    assert {line.verdict(found.alpha) for line in found.lines} == {"unclear"}
    assert [int(much) for much in re.findall(r"--much:(\d+)%", text)] == [14]
    clear = compare({"t": Table.of(answers("base", 0) + answers("new", 4))})
    text = write_comparison(clear, tmp_path / "d.html").read_text()
    assert [int(much) for much in re.findall(r"--much:(\d+)%", text)] == [46]


def test_the_command_writes_what_the_suffix_says(quizzes, tmp_path, capsys):
    quizzes.save(tmp_path / "scores.parquet")
    for name in ("c.html", "c.csv", "c.tex", "c.md", "c.parquet"):
        with pytest.raises(SystemExit) as left:
            main(["compare", str(tmp_path / "scores.parquet"), "--out", str(tmp_path / name)])
        assert left.value.code == 0 and (tmp_path / name).stat().st_size > 300
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(
            [
                "-q",
                "compare",
                str(tmp_path / "scores.parquet"),
                "--metric",
                "correct",
                "--by",
                "language",
                "--json",
            ]
        )
    assert len(json.loads(capsys.readouterr().out)["lines"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.parquet"], "no table nothing.parquet"),
        (["{t}", "{t}"], "two tables are called 't'; give them names: NAME="),
        (["{t}", "--metric", "corect"], "did you mean 'correct'"),
        (["{t}", "--out", "c.doc"], "no format '.doc'"),
        (["{t}", "--by", "tongue"], "by 'tongue'"),
    ],
)
def test_wrong_input_ends_with_a_message(arguments, message, quizzes, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quizzes.save(tmp_path / "t.parquet")
    with pytest.raises(SystemExit) as left:
        main(["compare", *(word.format(t="t.parquet") for word in arguments)])
    said = capsys.readouterr().err
    assert left.value.code == 2 and message in said and "Traceback" not in said


def test_another_suffix_is_refused(quizzes, tmp_path):
    with pytest.raises(DataError, match="no format"):
        write_comparison(compare({"t": quizzes}), tmp_path / "c.pdf")
