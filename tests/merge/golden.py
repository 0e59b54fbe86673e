"""Reference outputs of merge methods: cases of a file, and arrays drawn as it says."""

import json
from pathlib import Path

import numpy as np
import pytest


def content(name):
    return json.loads((Path(__file__).parent.parent / "golden" / f"{name}.json").read_text())


def cases(name):
    """All cases of a file as parameters of a test."""
    return [pytest.param(case, id=case["name"]) for case in content(name)["cases"]]


def array_of(value):
    """An array that is written out, or the draw that is described."""
    if not isinstance(value, dict):
        return np.array(value)
    made = value["$rng"]
    drawn = getattr(np.random.default_rng(made["seed"]), made["dist"])(made["shape"])
    array = drawn * made["scale"] + made["shift"]
    np.testing.assert_allclose(array.ravel()[:3], value["head"], rtol=1e-9)
    return array


def check(result, expected, atol=1e-9, rtol=1e-6):
    """Compare with an array, or with the summary of one: sum, length, first six and last four numbers."""
    if isinstance(expected, dict):
        summary = expected["$summary"]
        assert list(result.shape) == summary["shape"]
        flat = result.ravel()
        expected = [summary["sum"], summary["l2"], *summary["head"], *summary["tail"]]
        result = [flat.sum(), np.linalg.norm(flat), *flat[:6], *flat[-4:]]
    np.testing.assert_allclose(result, expected, atol=atol, rtol=rtol)
