"""What all tests share: assets that are absent are said, not fetched; no test reaches a network."""

import shutil

import pytest
from hypothesis import HealthCheck, settings

# No test is timed: a busy machine must not fail one.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_collection_modifyitems(items):

    for item in items:
        for mark in item.iter_markers("asset"):
            from calque import assets

            name = mark.args[0]
            if not assets.where(name).exists():
                item.add_marker(
                    pytest.mark.skip(reason=f"asset {name} is not in the cache: calque assets get {name}")
                )
        if item.get_closest_marker("browser") and not (
            shutil.which("chromium") and shutil.which("chromedriver")
        ):
            item.add_marker(pytest.mark.skip(reason="chromium and chromedriver are not installed"))


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
