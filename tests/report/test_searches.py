"""The section of a report on searches: the curve that a search kept, drawn and as numbers."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from calque import disk
from calque.report import charts
from calque.report.html import write_report
from calque.report.run import Run
from calque.report.searches import searches

from .test_browser import browser, show  # noqa: F401

BASE = {"nya": 2.9, "eng": 1.05}


def entry(settings, times):
    bits = {name: value * times for name, value in BASE.items()}
    return {**settings, "score": float(np.log2(times)), "bits_per_byte": bits}


def keep(folder, do, curve, **taken):
    folder.mkdir(parents=True)
    disk.write_json(folder / "manifest.json", {"step": folder.name, "do": do, "seconds": 12.0})
    disk.write_json(folder / "rewrite.json", {**taken, "search": {"base": BASE, "curve": curve}})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    corners = [(5, 2), (4, 3), (9, 2), (5, 6), (1, 2), (7, 2), (5, 4)]
    times = [0.931, 0.945, 0.93, 0.97, 1.004, 0.912, 0.93]
    swaps = [
        entry({"bottom": bottom, "top": top}, value)
        for (bottom, top), value in zip(corners, times, strict=True)
    ]
    keep(folder / "steps/swap", "merge/layerswap_search", swaps, bottom=7, top=2, transition_top=1)
    draws = np.random.default_rng(0)
    scales = draws.uniform(0.5, 3, (30, 2)).round(3)
    found = [entry({"scales": pair.tolist()}, 0.88 + 0.1 * abs(pair - 1.3).sum()) for pair in scales]
    found[3] = entry({"scales": [3.0, 3.0]}, 7.5)
    best = min(found, key=lambda one: one["score"])
    keep(folder / "steps/pcb", "merge/pcb_search", found, scales=best["scales"])
    return folder


def test_the_candidate_whose_settings_the_result_has_is_the_chosen_one(run):
    pcb, swap = searches(Run.read(run))
    assert (swap.step, swap.do, len(swap.candidates)) == ("swap", "merge/layerswap_search", 7)
    assert swap.chosen.settings == "bottom 7, top 2" and swap.chosen.times == pytest.approx(0.912)
    assert swap.chosen.bits == pytest.approx([1.05 * 0.912, 2.9 * 0.912]) and swap.texts == ("eng", "nya")
    assert pcb.chosen.times == min(one.times for one in pcb.candidates)
    assert re.fullmatch(r"scales \d\.\d\d and \d\.\d\d", pcb.chosen.settings)
    assert sum(one.chosen for one in pcb.candidates) == 1


def test_equal_scores_do_not_hide_which_was_taken(tmp_path):
    curve = [entry({"bottom": b, "top": 1}, 0.9) for b in (4, 2, 3)]
    keep(tmp_path / "steps/swap", "merge/layerswap_search", curve, bottom=2, top=1)
    (found,) = searches(Run.read(tmp_path))
    assert [one.chosen for one in found.candidates] == [False, True, False]


def test_the_chart_says_in_words_what_it_shows(run):
    _, swap = searches(Run.read(run))
    wide, narrow = (ElementTree.fromstring(f"<svg{part}") for part in str(swap.chart).split("<svg")[1:])
    for chart in (wide, narrow):
        assert chart.get("role") == "img"
        said = str(chart.get("aria-label"))
        assert "7 candidates" in said and "number 6 with bottom 7, top 2, 0.912" in said
        texts = {"".join(t.itertext()) for t in chart.iter() if t.tag.endswith("text")}
        assert {"bottom 7, top 2", "candidate", "bits per byte, times the base's"} <= texts


def test_all_numbers_stand_in_a_table(run):
    page = write_report(run, run / "report.html").read_text()
    assert "What the search tried" in page and "0.9120" in page and "2.645" in page
    assert page.count("<tr") >= 7 + 30 + 2


def test_ruined_candidates_do_not_press_the_others_together():
    low, high = charts._band(np.array([0.9, 0.92, 0.91, 0.95, 40.0]))
    assert low < 0.9 and 1 <= high < 1.5
    low, high = charts._band(np.array([0.5, 0.501, 0.502]))
    assert 0.49 < low < 0.5 and high < 0.51
    assert charts._band(np.array([0.9]))[0] < 0.9


def test_a_run_without_a_search_has_no_such_section(tmp_path):
    (tmp_path / "steps" / "x").mkdir(parents=True)
    assert searches(Run.read(tmp_path)) == []


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_screen(browser, run, width, scheme):  # noqa: F811
    address = write_report(run, run / "report.html").as_uri()
    show(browser, address, width, scheme)
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('svg.chart')].map(s => s.getBoundingClientRect())"
    )
    seen = [box for box in boxes if box["width"] > 0]
    assert len(boxes) == 4 and len(seen) == 2 and all(box["height"] > 200 for box in seen)
    inner, outer = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert inner <= outer <= width
