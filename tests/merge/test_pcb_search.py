"""The search of the scales: that it finds them, keeps its curve, and computes the shares once."""

import json
import sys

import numpy as np
import pytest

from calque import registry
from calque.data.corpus import Corpus
from calque.errors import ConfigError, MissingExtra
from calque.merge import pcb_search as searching
from calque.merge.pcb import pcb
from calque.merge.pcb_search import minimize, pcb_search
from calque.method_command import method_command

from .. import tiny
from .kin import close, computed, family, vector


@pytest.mark.parametrize("best", [[1.7], [1.2, 0.8], [2.5, 0.6, 1.1]])
def test_it_finds_the_best_scales(best):
    tried = []

    def distance(point):
        tried.append(list(point))
        return float(np.sum((np.array(point) - best) ** 2))

    found = minimize(distance, [1.0] * len(best), (0.5, 3.0), 120, 0)
    assert found == pytest.approx(best, abs=0.15)
    assert len(tried) == 120 and tried[0] == [1.0] * len(best)
    assert all(0.5 <= x <= 3.0 for point in tried for x in point)
    tried_before = list(tried)
    tried.clear()
    assert minimize(distance, [1.0] * len(best), (0.5, 3.0), 120, 0) == found and tried == tried_before


def test_one_evaluation_is_the_start():
    assert minimize(lambda point: 0.0, [1.3, 1.4], (0.5, 3.0), 1, 0) == [1.3, 1.4]


def test_several_scales_need_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(MissingExtra, match=r"calque\[search\]"):
        minimize(sum, [1.0, 1.0], (0.5, 3.0), 3, 0)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return family(tmp_path_factory.mktemp("models"), (0.01, 0.02))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n".join(f"{line} {number}" for number in range(9) for line in tiny.ENGLISH))
    return Corpus.open(file, language="eng_Latn")


def test_candidates_are_pcb_merges_and_the_best_is_written(models, corpus, tmp_path, monkeypatch):
    base, tuned = models
    wanted = vector(base, pcb(base, tuned, keep=0.3, scales=[2.0, 0.7]).write(tmp_path / "wanted"))
    seen = []

    def bits(checkpoint, texts, max_bytes):
        away = float(np.linalg.norm(vector(base, checkpoint) - wanted) / np.linalg.norm(wanted))
        seen.append(away)
        return dict.fromkeys(texts, 2.0**away)

    monkeypatch.setattr(searching, "bits_per_byte", bits)
    work = tmp_path / "work"
    work.mkdir()
    rewrite = pcb_search(base, tuned, {"dev": corpus}, work=work, evaluations=40, keep=0.3)
    curve = rewrite.notes["search"]["curve"]
    best = min(curve, key=lambda entry: entry["score"])
    assert rewrite.notes["scales"] == best["scales"] == pytest.approx([2.0, 0.7], abs=0.2)
    assert len(curve) == 40 and len(seen) == 41
    out = rewrite.write(tmp_path / "out")
    assert close(out, pcb(base, tuned, keep=0.3, scales=best["scales"]).write(tmp_path / "again"))
    assert json.loads((out.folder / "rewrite.json").read_text())["search"]["base"] == {"dev": 2.0}
    seen.clear()  # a call after a kill finds the scores of the one before
    again = pcb_search(base, tuned, {"dev": corpus}, work=work, evaluations=40, keep=0.3)
    assert not seen and again.notes["search"]["curve"] == curve
    assert sorted(path.name for path in work.iterdir()) == ["scores.json"]


def test_with_real_scores(models, corpus, tmp_path):
    base, tuned = models
    rewrite = pcb_search(base, tuned[:1], {"dev": corpus}, work=tmp_path, evaluations=2, max_bytes=400)
    found = computed(rewrite)
    assert found.keys() == base.tensors.keys()
    assert all(np.isfinite(entry["score"]) for entry in rewrite.notes["search"]["curve"])


def test_impossible_settings_are_refused(models, corpus, tmp_path):
    with pytest.raises(ConfigError, match="no validation text"):
        pcb_search(*models, {}, work=tmp_path)
    with pytest.raises(ConfigError, match=r"start 4\.0"):
        pcb_search(*models, {"dev": corpus}, work=tmp_path, start=4.0)


@pytest.mark.parametrize("name", ["merge/pcb_search", "merge/layerswap_search", "merge/pcb"])
def test_a_search_has_no_plan_to_print(name):
    options = [option for one in method_command(registry.method(name)).params for option in one.opts]
    assert "--out" in options and ("--dry-run" in options) == (name == "merge/pcb")
