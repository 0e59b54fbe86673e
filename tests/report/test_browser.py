"""Report and comparison in a real browser: charts draw, nothing is fetched, the console stays empty."""

import json

import pytest

from calque.evaluate.compare import compare
from calque.report.comparison import write_comparison
from calque.report.html import write_report

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module", params=["report", "comparison"])
def page(request, hostile, quizzes, tmp_path_factory):
    """(address, charts in the page, charts that are seen without opening anything)."""
    file = tmp_path_factory.mktemp("page") / f"{request.param}.html"
    if request.param == "report":
        return write_report(hostile, file).as_uri(), 4, 2
    return write_comparison(compare({"t": quizzes}), file).as_uri(), 2, 1


@pytest.fixture
def address(page):
    return page[0]


def show(browser, address, width, scheme):
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(address)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_draw_and_fit(browser, page, width, scheme):
    address, count, visible = page
    browser.get_log("performance"), browser.get_log("browser")
    show(browser, address, width, scheme)
    charts = browser.execute_script(
        "return [...document.querySelectorAll('svg.chart')].map(s => ({box: s.getBoundingClientRect(),"
        " paths: s.querySelectorAll('path').length, texts: [...s.querySelectorAll('text')].length}))"
    )
    seen = [c for c in charts if c["box"]["width"] > 0]
    assert (len(charts), len(seen)) == (count, visible)
    for chart in seen:
        assert chart["box"]["height"] > 100 and chart["box"]["width"] > 300
        assert chart["paths"] > 10 and chart["texts"] > 8
    inner, outer = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert inner <= outer <= width
    assert browser.get_log("browser") == []
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
    assert urls and all(url.startswith(("file:", "data:")) for url in urls)
    assert [url for url in urls if url.startswith("file:")] == [address]


def test_light_and_dark_both_have_contrast(browser, address):
    """Text against its background: at least 4.5 to 1 for everything a reader has to read."""
    script = """
      const lum = c => { const [r,g,b] = c.match(/[\\d.]+/g).slice(0,3).map(v => {
        if (!c.startsWith('color(')) v /= 255; // a mixed colour is given from 0 to 1
        return v <= 0.03928 ? v/12.92 : ((v+0.055)/1.055)**2.4 }); return 0.2126*r + 0.7152*g + 0.0722*b };
      const solid = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
        if (!/, 0\\)$/.test(c) && c !== 'transparent') return c } return 'rgb(255,255,255)' };
      return [...document.querySelectorAll('h1,h2,h3,h4,p,td,th,li,small,span.piece,summary,code,text,dt,dd')]
        .filter(e => e.getClientRects().length && e.textContent.trim()).map(e => {
          const s = getComputedStyle(e), a = lum(e.tagName === 'text' ? s.fill : s.color), b = lum(solid(e));
          return [(Math.max(a,b)+0.05)/(Math.min(a,b)+0.05), e.tagName + ' ' + e.textContent.slice(0, 40)] })
        .filter(x => x[0] < 4.5)"""
    for scheme in ("light", "dark"):
        show(browser, address, 1280, scheme)
        assert browser.execute_script(script) == []


def test_no_script_of_the_corpus_runs(browser, address):
    show(browser, address, 1280, "light")
    assert browser.execute_script("return document.scripts.length") == 0
    assert "<script>alert('x')</script>" in browser.find_element("tag name", "body").text


def test_colours_follow_the_scheme(browser, address):
    script = (
        "return getComputedStyle(document.querySelector('svg.chart text')).fill"
        " + getComputedStyle(document.body).backgroundColor"
    )
    found = []
    for scheme in ("light", "dark"):
        show(browser, address, 1280, scheme)
        found.append(browser.execute_script(script))
    assert found[0] != found[1]
