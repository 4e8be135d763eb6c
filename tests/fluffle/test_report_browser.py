"""The report in a real browser, which notices what a reader would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fluffle.report.interactive import INTERACTIVE
from fluffle.report.page import write_report
from tests.fluffle.browser import Browser, chromium
from tests.fluffle.runs import write_run
from tests.fluffle.test_report import ORDINARY

#: Width and height of each figure's drawing, and how many words are in it.
FIGURES = """
return [...document.querySelectorAll('figure')].map(figure => {
  const svg = figure.querySelector('svg'), box = svg.getBoundingClientRect();
  return [figure.id, box.width, box.height, svg.querySelectorAll('text').length];
});
"""
OVERFLOW = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
#: The colours of the page, of its text, and of a figure's.
COLOURS = """
const of = (element, property) => getComputedStyle(document.querySelector(element))[property];
return [of('body', 'backgroundColor'), of('body', 'color'), of('#staleness text', 'fill')];
"""

pytestmark = pytest.mark.slow  # and it needs a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("browser")) as one:
        yield one


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The report of a run with everything, and of one under the real clock."""
    folders = [write_run(tmp_path / "virtual", clock="virtual"), write_run(tmp_path / "real")]
    return write_report(folders, tmp_path / "report", target=0.5, price=2.0)


def test_the_page_opens_with_all_figures_and_nothing_on_the_console(
    browser: Browser, page: Path
) -> None:
    browser.open(page)
    drawn = browser.evaluate(FIGURES)
    assert [name for name, *_ in drawn] == [p.name for p in ORDINARY]
    for _, width, height, words in drawn:
        assert width > 400
        assert height > 80
        assert words > 5
    assert browser.evaluate("return document.querySelectorAll('#to-target tbody tr').length") == 5
    assert browser.console() == []


def test_the_page_may_load_nothing_and_run_nothing(browser: Browser, page: Path) -> None:
    # Given a page into which somebody has put a picture from elsewhere, and a script
    page.write_text(
        page.read_text()
        .replace("</body>", '<img src="file:///x.png"><script>console.error("ran")</script></body>')
    )  # fmt: skip
    browser.open(page)
    # Then the browser refuses both, and says so on the console that the other test has read
    said = browser.console()
    assert len(said) == 2
    assert all("Content Security Policy" in line for line in said)


def test_a_phone_scrolls_figures_but_not_the_page(browser: Browser, page: Path) -> None:
    browser.command(
        "Emulation.setDeviceMetricsOverride",
        **{"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True},
    )
    browser.open(page)
    assert browser.evaluate(OVERFLOW) == 0
    browser.command("Emulation.clearDeviceMetricsOverride")


def test_figures_follow_the_page_into_the_dark(browser: Browser, page: Path) -> None:
    browser.open(page)
    seen = {}
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.command("Emulation.setEmulatedMedia", features=features)
        seen[scheme] = browser.evaluate(COLOURS)
    assert seen["light"] == ["rgb(255, 255, 255)", "rgb(26, 26, 27)", "rgb(26, 26, 27)"]
    assert seen["dark"] == ["rgb(22, 22, 24)", "rgb(236, 236, 238)", "rgb(236, 236, 238)"]


#: How many curves and bands are shown, in all pictures and the legend; no line of a target.
VISIBLE = """
return [...Bokeh.documents[0]._all_models.values()]
  .filter(model => model.type == 'GlyphRenderer' && model.visible)
  .filter(model => model.glyph.type != 'HSpan').length;
"""
#: The corner of the legend.
LEGEND = """
const box = document.querySelector('.wide').getBoundingClientRect();
return [box.left, box.top];
"""


def test_in_the_interactive_page_a_click_on_a_name_hides_its_curves_in_all_pictures(
    browser: Browser, page: Path
) -> None:
    # Given the page beside the report, which loads nothing
    moving = page.parent / INTERACTIVE
    assert f'href="{INTERACTIVE}"' in page.read_text()
    browser.open(moving)
    shown = browser.evaluate(VISIBLE)
    assert shown > 8
    # When a person clicks on a name
    left, top = browser.evaluate(LEGEND)
    for kind in ("mousePressed", "mouseReleased"):
        place = {"x": left + 25, "y": top + 15, "button": "left", "clickCount": 1}
        browser.command("Input.dispatchMouseEvent", type=kind, **place)
    # Then half of all curves, those of one run, are gone
    assert browser.evaluate(VISIBLE) == shown / 2
    # And nothing was refused, or went wrong
    assert not [line for line in browser.console() if "[bokeh" not in line]


def test_names_of_runs_are_text_in_the_interactive_page(browser: Browser, tmp_path: Path) -> None:
    # Given runs whose folders are called by markup
    names = ["<img src=x onerror=console.error(1)>", "</script><script>console.error(2)<"]
    folders = [write_run(tmp_path / name.replace("/", "\u2215")) for name in names]
    page = write_report(folders, tmp_path / "report")
    browser.open(page.parent / INTERACTIVE)
    # Then none of it runs
    assert browser.evaluate(VISIBLE) > 8
    assert not [line for line in browser.console() if "[bokeh" not in line]
