import re
import xml.etree.ElementTree as ElementTree

import numpy as np

from calque.report import charts
from calque.stats import Estimate

NAN = float("nan")


def panels(*labels):
    marks = tuple(
        charts.Mark(label, Estimate(1.0 + place, 0.9 + place, 1.1 + place, 5), role)
        for place, (label, role) in enumerate(
            zip(labels, ("base", "product", "other", "floor"), strict=False)
        )
    )
    return [charts.Panel("first", marks), charts.Panel("second", marks[:1])]


def series(label="a", count=200):
    minutes = np.linspace(0.01, 3, count)
    return charts.Series(label, "product", minutes, 5 / (1 + minutes), np.ones(count))


def drawn(svg):
    return [ElementTree.fromstring(f"<svg{part}") for part in str(svg).split("<svg")[1:]]


def texts(element):
    return ["".join(t.itertext()) for t in element.iter() if t.tag.endswith("text")]


def test_a_chart_is_well_formed_for_two_widths_and_its_text_is_text():
    wide, narrow = drawn(
        charts.both(charts.forest, panels("base", "new", "old", "zstd"), "f", "what it shows")
    )
    assert "wide" in wide.get("class") and "narrow" in narrow.get("class")
    assert wide.get("role") == "img" and wide.get("aria-label") == "what it shows"
    for chart in (wide, narrow):
        assert {"base", "new", "old", "zstd", "first", "second", "2.00"} <= set(texts(chart))
        assert chart.get("width") is None and float(chart.get("viewBox").split()[3]) > 100


def test_no_colour_is_fixed_and_no_id_occurs_twice():
    page = str(charts.both(charts.forest, panels("a", "b"), "f", "")) + str(
        charts.both(charts.curves, [series(), series("b")], "c", "")
    )
    assert not re.search(r"#[0-9a-fA-F]{6}", page)
    assert set(re.findall(r"var\(--(\w+)\)", page)) <= {
        "ink",
        "soft",
        "line",
        "card",
        "base",
        "product",
        "other",
        "floor",
    }
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) > 50
    assert set(re.findall(r"(?:url\(#|href=\"#)([^)\"]*)", page)) <= set(ids)


def test_names_from_outside_are_shown_as_they_are():
    odd = ["<script>x</script>", '$\\frac{1}{2}$ & "q"', "ሰላም پی", "a" * 80]
    (wide, _) = drawn(charts.both(charts.forest, panels(*odd), "f", "<script>'\""))
    assert set(odd) <= set(texts(wide))
    assert wide.get("aria-label") == "<script>'\""


def test_what_lies_far_out_is_an_arrow_and_does_not_press_the_rest_together():
    far = charts.Mark("random", Estimate(400.0, 390.0, 410.0, 5), "other")
    near = (
        charts.Mark("base", Estimate(4.0, NAN, NAN, 1), "base"),
        charts.Mark("new", Estimate(2.0, 1.9, 2.1, 5), "product"),
    )
    low, high = charts._range([charts.Panel("t", (*near, far))])
    assert 0 <= low < 2 and 4 < high < 6
    (wide, _) = drawn(charts.both(charts.forest, [charts.Panel("t", (*near, far))], "f", ""))
    assert "400.00" in texts(wide)


def test_one_system_on_one_text_and_a_curve_of_one_step_can_be_drawn():
    one = [charts.Panel("t", (charts.Mark("a", Estimate(2.0, NAN, NAN, 1), "product"),))]
    assert "2.00" in texts(drawn(charts.both(charts.forest, one, "f", ""))[0])
    assert len(drawn(charts.both(charts.curves, [series(count=1)], "c", ""))) == 2


def test_curves_are_means_over_stretches_within_the_range_of_the_batches():
    line = series()
    minutes, middle, low, high = charts._binned(line)
    assert len(minutes) <= 60 and (np.diff(minutes) > 0).all()
    assert (low <= middle + 1e-9).all() and (middle <= high + 1e-9).all()
    assert line.bits.min() <= middle.min() and middle.max() <= line.bits.max()
