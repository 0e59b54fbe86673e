import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from calque import cli, registry

from . import toys


@pytest.fixture(autouse=True)
def toy_methods(monkeypatch):
    monkeypatch.setattr(registry, "METHODS", {**registry.METHODS, **toys.METHODS})
    monkeypatch.setattr(registry, "FAMILIES", {**registry.FAMILIES, "toy": "toys"})


def run(*arguments):
    """Run the command line as a user would: (exit code, standard output, standard error)."""
    result = CliRunner().invoke(_Main(), list(arguments), prog_name="calque")
    return result.exit_code, result.stdout, result.stderr


class _Main:
    """`main` in the shape click's runner calls."""

    name = "calque"

    def main(self, args, prog_name, **_):
        cli.main(args)


def test_help_imports_no_heavy_library():
    code = (
        "import sys\nfrom calque import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = ('torch', 'transformers', 'numpy', 'scipy', 'pydantic', 'pyarrow')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "adapt" in done.stdout and done.stdout.strip().endswith("[]")


def test_a_method_becomes_a_command_with_its_ranges_defaults_and_choices():
    code, out, _ = run("toy", "make", "--help")
    assert code == 0
    assert "--times INT >=1,<=9" in out and "How often.  [default: 1]" in out and "SOURCE" in out
    _, out, _ = run("toy", "join", "--help")
    assert "[plain|dash]" in out and "--notes REF" in out


def test_a_method_runs_from_the_command_line(tmp_path):
    for name in ("one", "two"):
        code, out, _ = run("toy", "make", name, "--times", "2", "-o", str(tmp_path / name))
        assert code == 0 and out.strip() == str(tmp_path / name)
    notes = [part for name in ("one", "two") for part in ("--notes", str(tmp_path / name))]
    code, _, _ = run("toy", "join", *notes, "--how", "dash", "-o", str(tmp_path / "both"))
    assert code == 0
    assert (tmp_path / "both/note.txt").read_text() == "oneone0-twotwo0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["adopt"], "did you mean 'adapt'"),
        (["vocab", "focsu"], "did you mean 'focus'"),
        (["toy", "make", "x", "--times", "12", "-o", "o"], "setting 'times' = '12'"),
        (["merge", "ties", "b", "--tuned", "a", "--scale", "nan", "-o", "o"], "'scale' = nan: should be a"),
        (["merge", "linear", "b", "--tuned", "a", "--weights", "1e39", "-o", "o"], "'weights' = 1e+39"),
        (["merge", "fold", "nowhere", "-o", "o"], "nowhere: no adapter_config.json there"),
        (["toy", "make", "x", "--tmes", "1", "-o", "o"], "--tmes"),
        (["toy", "make", "x"], "Missing option"),
        (["toy", "slow", "nowhere", "-o", "o"], "no Note at nowhere"),
        (["toy", "slow", "tests", "--named", "nothing", "-o", "o"], "write it as NAME=REFERENCE"),
        (["list", "vocob"], "did you mean 'vocab'"),
        (["show", "vocab/wexel"], "did you mean 'vocab/wechsel'"),
        (["run", "no-such.yaml"], "no recipe no-such.yaml"),
    ],
)
def test_wrong_commands_end_with_one_message_and_exit_code_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert code == 2
    assert message in err and "Traceback" not in err and out == ""
    assert not (tmp_path / "o").exists()


def test_list_shows_every_method_and_json_is_json():
    _, out, _ = run("list")
    assert all(name in out for name in registry.METHODS)
    _, out, _ = run("list", "vocab", "--json")
    assert {row["method"].split("/")[0] for row in json.loads(out)} == {"vocab"}


def test_completion_scripts_name_the_command():
    for shell in ("bash", "zsh", "fish"):
        code, out, _ = run("completion", shell)
        assert code == 0 and "_CALQUE_COMPLETE" in out


def test_doctor_says_what_a_bug_report_needs():
    code, out, _ = run("doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert {"torch", "cores", "memory", "bf16", "disk", "threads", "cache"} <= set(found)
