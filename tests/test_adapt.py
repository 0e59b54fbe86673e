"""The main job from end to end on a tiny model: recipe, product, report, a second call, and a kill."""

import json
import os
import random
import signal
import time
from multiprocessing import get_context

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from calque import runner
from calque.adapt import adapt, plan, write_recipe
from calque.errors import ConfigError, DataError, ModelError
from calque.evaluate.table import Table
from calque.profile import profile
from calque.recipe import Recipe

from . import tiny

VERBS = ["anapita", "anabwera", "anati", "anaona", "anamva", "anadya", "anagona"]
NOUNS = ["mfumu", "mwana", "mayi", "mtsinje", "nyumba", "munthu", "mtengo", "dziko"]


def sentences(count, seed):
    draw = random.Random(seed)
    return [
        f"{draw.choice(NOUNS).title()} {draw.choice(VERBS)} ku {draw.choice(NOUNS)} {n}."
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """(model folder, text folder, parallel folder) of eight documents each."""
    folder = tmp_path_factory.mktemp("material")
    model = tiny.model(folder / "model", "llama-tied")
    for name in ("text", "parallel"):
        (folder / name).mkdir()
    for document in range(8):
        lines = sentences(30, document)
        (folder / "text" / f"{document}.txt").write_text("\n".join(lines) + "\n")
        pairs = [f"The {n} {line.split()[1]} it.\t{line}" for n, line in enumerate(lines)]
        (folder / "parallel" / f"{document}.tsv").write_text("eng_Latn\tnya_Latn\n" + "\n".join(pairs) + "\n")
    return str(model), str(folder / "text"), str(folder / "parallel")


@pytest.fixture(scope="module")
def done(material, tmp_path_factory):
    model, text, parallel = material
    out = tmp_path_factory.mktemp("runs") / "out"
    given = {"to": "nya", "text": text, "parallel": parallel, "minutes": 0.02, "test_bytes": 2000}
    return adapt(model, out=out, baseline=True, command="calque adapt ...", **given), given


def test_the_job_ends_with_a_checkpoint_that_transformers_opens_and_a_report(done):
    report, _ = done
    out = report.parent
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert (
        tokenizer.decode(tokenizer("Mfumu anati 7.")["input_ids"], skip_special_tokens=True)
        == "Mfumu anati 7."
    )
    assert not (out / "model/manifest.json").exists()
    page = report.read_text()
    assert "Chichewa" in page and "calque adapt ..." in page and "<svg" in page


def test_every_row_of_the_comparison_is_there(done):
    out = done[0].parent
    table = Table.load(out / "steps/scores/table.parquet")
    systems = {"base", "start", "adapted", "mean start", "random start"}
    assert set(table.values("system")) == systems | {"LoRA, old vocabulary", "full, old vocabulary"}
    assert set(table.values("task")) == {"lm/heldout", "lm/source"}
    assert json.loads((out / "steps/trained/manifest.json").read_text())["inputs"]["start"]


def test_nothing_held_out_is_learnt_from(done):
    from calque.data.corpus import Corpus

    steps = done[0].parent / "steps"
    held = set(Corpus.load(steps / "heldout").texts("nya_Latn"))
    assert held
    for name in ("text", "parallel"):
        assert not held & set(Corpus.load(steps / name).texts("nya_Latn"))


def test_the_same_command_again_does_nothing_and_another_is_refused(done, material, capsys):
    report, given = done
    before = {p: p.stat().st_mtime_ns for p in (report.parent / "steps").iterdir()}
    adapt(material[0], out=report.parent, baseline=True, **given)
    assert {p: p.stat().st_mtime_ns for p in (report.parent / "steps").iterdir()} == before
    assert "done before" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"holds another run \(differs in .*minutes"):
        adapt(material[0], out=report.parent, baseline=True, **{**given, "minutes": 5})


def test_without_parallel_text_new_tokens_start_from_their_pieces(material, tmp_path, capsys):
    file = write_recipe(tmp_path / "out", model=material[0], to="nya", text=material[1])
    recipe = Recipe.read(file)
    assert {s.do for s in recipe.steps} >= {"vocab/subword", "merge/calibrate"}
    assert "no parallel text" in capsys.readouterr().err
    assert list((tmp_path / "out").glob("steps")) == []


def test_the_source_language_can_be_kept(material, tmp_path):
    from calque.data.corpus import Corpus
    from calque.vocab.tokenizer import train_tokenizer
    from calque.vocab.tokens import Tokens

    given = {"model": material[0], "to": "nya", "text": material[1], "parallel": material[2]}
    plain, kept = (
        {s.name: s for s in Recipe.read(write_recipe(tmp_path / str(k), keep_source=k, **given)).steps}
        for k in (False, True)
    )
    assert kept["trained"].settings["replay_share"] > plain["trained"].settings["replay_share"]
    settings = {**kept["tokenizer"].settings, "new": 3}
    old, text = Tokens.open(material[0]), Corpus.open(material[1], language="nya_Latn")
    assert set(old.strings) <= set(train_tokenizer(old, text, **settings).strings)


WRONG = [
    ({"minutes": 0}, ConfigError, "budget of training time is more than 0"),
    ({"minutes": -3}, ConfigError, "more than 0"),
    ({"to": "xyzzy"}, ConfigError, "xyzzy"),
    ({"to": "eng"}, ConfigError, "nothing to carry over"),
    ({"replay": 0.2}, ConfigError, "needs text in the source language"),
    ({"replay": 1.5, "parallel": "TEXT"}, ConfigError, "replay_share"),
    ({"test_bytes": 10}, ConfigError, "nothing can be said"),
    ({"text": "no/such/file.txt"}, DataError, "no/such/file.txt"),
    ({"model": "no/such/model"}, ConfigError, "no/such/model"),
    ({"model": "TEXT"}, ModelError, "config.json"),
]


@pytest.mark.parametrize(("change", "kind", "message"), WRONG)
def test_wrong_arguments_get_one_clear_message(material, tmp_path, change, kind, message):
    change = {k: material[1] if v == "TEXT" else v for k, v in change.items()}
    given = {"model": material[0], "to": "nya", "text": material[1], "minutes": 0.02, **change}
    with pytest.raises(kind, match=message):
        adapt(out=tmp_path / "out", **given)
    assert not (tmp_path / "out/model").exists()


def test_profile_says_how_a_language_is_served_and_what_to_run(material):
    found = profile(material[0], to="nya", text=material[1])
    assert found.served[0].language == "nya_Latn" and found.served[0].tokens_per_word > 1
    assert found.command.startswith("calque adapt ") and "--to nya_Latn" in found.command
    assert "bits per byte" in found.to_text()
    assert found.plain()["near"]


def small_recipe(material):
    """The job with training counted in steps, so that it has one result."""
    recipe = plan(material[0], to="nya", text=material[1], parallel=material[2], minutes=1).plain()
    settings = recipe["steps"]["trained"]["with"]
    del settings["minutes"]
    recipe["steps"]["trained"]["with"] = {**settings, "steps": 6, "save_steps": 1}
    recipe["steps"] = {k: v for k, v in recipe["steps"].items() if k not in ("generation", "floors")}
    return Recipe.parse(recipe, "small")


def outputs(out):
    names = ("tokenizer", "lexicon", "map", "start", "trained")
    return {n: json.loads((out / "steps" / n / "manifest.json").read_text())["output"] for n in names}


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(material, tmp_path):
    recipe = small_recipe(material)
    began = time.monotonic()
    whole = runner.run(recipe, tmp_path / "whole")
    seconds = time.monotonic() - began
    draw, killed = random.Random(0), tmp_path / "killed"
    for _ in range(10):
        child = get_context("fork").Process(target=runner.run, args=(recipe, killed))
        child.start()
        time.sleep(draw.uniform(0.02, 0.4) * seconds)
        if child.pid and child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
        child.join()
    runner.run(recipe, killed)
    assert outputs(killed) == {**outputs(whole), "trained": outputs(killed)["trained"]}
    weights = [(folder / "model/model.safetensors").read_bytes() for folder in (whole, killed)]
    assert weights[0] == weights[1]
    assert not [p for p in (killed / "steps").iterdir() if p.name.startswith(".")]
