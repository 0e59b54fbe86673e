"""The section of a report on merges: maps of layers by roles, from what the merge wrote."""

import pytest
import torch

from calque import runner
from calque.report.html import write_report
from calque.report.merges import merges
from calque.report.run import Run

from .. import tiny


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merge")
    models = [tiny.model(folder / f"m{seed}", seed=seed, dtype=torch.bfloat16) for seed in range(3)]
    tuned = [str(model) for model in models[1:]]
    return runner.call("merge/linear", {"base": str(models[0]), "tuned": tuned}, {}, folder / "out")


def test_maps_have_every_layer_and_role(merged):
    (found,) = merges(Run.read(merged))
    assert found.models == (("-", "m0"), ("A", "m1"), ("B", "m2"))
    titles = [one.title for one in found.maps]
    assert titles[:3] == ["How far A had moved", "How far B had moved", "Whether A and B moved the same way"]
    for one in found.maps:
        inside = [row for row in one.rows if row[0] in ("0", "1")]
        assert len(inside) == 2 and all(len(cells) == len(one.roles) for _, cells in inside)
        assert {"embed.input", "embed.output", "final_norm"} <= {name for name, _ in one.rows}
        assert all(0 <= cell.strength <= 100 for _, cells in one.rows for cell in cells if cell)


def test_a_single_output_has_a_report(merged):
    page = write_report(merged, merged / "report.html").read_text()
    assert "What the merge did" in page and "Sign conflicts" in page and "<script" not in page


def test_the_manifest_says_what_went_in(merged):
    manifest = Run.read(merged).steps[0].manifest
    assert manifest["rewrite"]["inputs"]["parameters"] == 35
    assert len(manifest["rewrite"]["inputs"]["tuned"]) == 2


def test_a_run_without_merges_has_no_section(tmp_path):
    (tmp_path / "steps" / "x").mkdir(parents=True)
    assert merges(Run.read(tmp_path)) == []


def test_what_was_done_without_a_diagnosis_is_told_by_its_settings(tmp_path):
    model = tiny.model(tmp_path / "model", "llama-tied", num_hidden_layers=4)
    settings = {"languages": ["nya", "eng"], "layers": 2, "preserve": True}
    out = runner.call("merge/upcycle", {"base": str(model)}, settings, tmp_path / "moe")
    (found,) = merges(Run.read(out))
    told = dict(found.settings)
    assert told["preserve"] == "yes" and told["layers"] == "2, 3" and not found.maps
    assert told["experts"] in ("nya_Latn; eng_Latn", "eng_Latn; nya_Latn")
    page = write_report(out, out / "report.html").read_text()
    assert "merge/upcycle" in page and "Each map has" not in page


def test_computed_layers_have_a_row_among_copied_ones(tmp_path):
    models = [tiny.model(tmp_path / f"m{seed}", seed=seed, num_hidden_layers=5) for seed in range(3)]
    of = dict(zip(("base", "task", "language"), map(str, models), strict=True))
    out = runner.call("merge/layerswap", of, {"bottom": 1, "top": 1}, tmp_path / "out")
    (found,) = merges(Run.read(out))
    copied = next(one for one in found.maps if one.title.startswith("Taken over"))
    told = {name: {cell.text for cell in cells if cell} for name, cells in copied.rows}
    assert [told[str(layer)] for layer in range(5)] == [{"B"}, {""}, {"A"}, {""}, {"B"}]


def test_settings_of_a_merge_are_told(merged):
    (found,) = merges(Run.read(merged))
    assert dict(found.settings)["weights"] and "tensors" not in dict(found.settings)
