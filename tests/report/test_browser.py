"""The page in a real browser: every figure is drawn, no network is asked, nothing fails."""

import json
import os
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from triskel.report.page import render
from triskel.report.readings import readings

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SAMPLES = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "report_samples.py"))
)
OLD = Path(__file__).parents[1] / "golden" / "result-1-classify.json"
patience = runpy.run_path(str(Path(__file__).parents[1] / "helpers" / "patience.py"))["patience"]
EVIL = "</script><img src=x onerror=\"document.title='owned'\">"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    named = os.environ.get("TRISKEL_CHROMIUM")
    path = named or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium on the PATH: install one or name it with TRISKEL_CHROMIUM")
    with sync_api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=path, args=FLAGS)
        yield started
        started.close()


def read_out(found: dict[str, Any]) -> dict[str, Any]:
    """Return a result with its readings."""
    return found | {"readings": readings(found.get("runs", [found]))}


def blank(browser: "Browser", width: int) -> "Page":
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.set_default_timeout(patience(30) * 1000)  # milliseconds
    return page


def shape(name: str) -> dict[str, Any]:
    held = {f"c{i:03d}": (30 + i, 10) for i in range(100)}
    labels = {c: {f"intent {j}": (i + j) % 5 for j in range(77)} for i, c in enumerate(held)}
    evil = {EVIL: (5, 5), "<b>b</b>": (5, 5)}
    found: dict[str, Any] = {
        "whole": SAMPLES.result,
        "causal": lambda: SAMPLES.result(causal=True),
        "many": lambda: SAMPLES.result(held, labels),
        "thousands": lambda: SAMPLES.many(10_000, 77),  # takes seconds
        "tested": lambda: read_out(SAMPLES.modern()),
        "seeds": lambda: read_out(SAMPLES.seeds(3)),
        "old": lambda: json.loads(OLD.read_text(encoding="utf-8")),
        "hostile": lambda: SAMPLES.result(evil, {c: {EVIL: 5} for c in evil}),
    }[name]()
    return found


@pytest.mark.browser
@pytest.mark.parametrize("width", [1366, 390])
@pytest.mark.parametrize(
    "name", ["whole", "causal", "many", "thousands", "tested", "seeds", "old", "hostile"]
)
def test_a_browser_draws_every_figure_and_complains_about_nothing(
    browser: "Browser", tmp_path: Path, name: str, width: int
) -> None:
    file = tmp_path / "report.html"
    file.write_text(render(shape(name)), encoding="utf-8")
    page = blank(browser, width)
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length >= 7")
    page.wait_for_timeout(300)
    places = page.locator(".plot").count()
    drawn = page.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot')]"
        ".filter(p => p.querySelector('.main-svg .trace, .main-svg .point')).length"
    )
    page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
    wide = page.evaluate("document.documentElement.scrollWidth")
    title = page.title()
    page.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert drawn == places == 7
    assert wide <= width
    assert title != "owned"
    assert (tmp_path / "page.png").stat().st_size > 20_000


@pytest.mark.browser
def test_figures_fit_the_paper_and_come_back_to_the_screen(
    browser: "Browser", tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    file.write_text(render(SAMPLES.result()), encoding="utf-8")
    page = blank(browser, 1366)
    page.goto(file.as_uri())
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length >= 7")
    widths = "[...document.querySelectorAll('.plot .main-svg')].map(s => s.clientWidth)"
    before = page.evaluate(widths)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    printed = page.evaluate(widths)
    opened = page.locator("details.job[open]").count()
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.wait_for_timeout(300)
    after = page.evaluate(widths)
    paper = page.pdf(prefer_css_page_size=True)
    page.close()
    assert max(printed) <= 681  # 180 mm at 96 dots per inch
    assert opened == 1
    assert after == before
    assert paper.startswith(b"%PDF")
