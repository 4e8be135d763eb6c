"""The live page in a real browser, beside real processes on RabbitMQ."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluffle.broker.admin.node import Node
from tests.fluffle.browser import Browser, chromium
from tests.fluffle.test_watch import MARKUP, write_crowd
from tests.fluffle.toy import write_toy
from tests.integration.processes import Start, Started, wait_for_version, wait_until

pytestmark = [pytest.mark.rabbitmq, pytest.mark.slow]

#: The version and the status that a reader sees.
SHOWN = """
const version = document.querySelector('.tile b');
return [version ? parseInt(version.textContent.replace(/,/g, '')) : -1,
        document.getElementById('status').textContent];
"""
WIDER = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with chromium(tmp_path) as one:
        yield one


def served(watch: Started) -> str:
    """Where its page is, once it says so."""
    wait_until(lambda: "watching at" in watch.output, watch)
    found = re.search(r"http://\S+", watch.output)
    assert found is not None
    return found[0]


def test_the_page_moves_with_a_run_and_through_the_aggregators_kill(
    start: Start, browser: Browser, rabbitmq: Node, federation: str, tmp_path: Path
) -> None:
    # Given a run on RabbitMQ, and a page that was opened before there was one
    runs = tmp_path / "runs"
    runs.mkdir()
    experiment = write_toy(tmp_path / "toy")
    watch = start("watch", runs, "--port", 0)
    browser.open(served(watch))
    wait_until(lambda: "no run yet" in browser.evaluate("return document.body.innerText"), watch)
    where = ("--broker", rabbitmq.url, "--federation", federation)
    lead = (
        *("aggregator", experiment, *where, "--out", runs / "toy"),
        *("--set", "experiment.versions=60", "--set", "devices.delay_s=0.2"),
    )
    aggregator = start(*lead)
    worker = start("worker", *where, "--task", f"{tmp_path / 'toy' / 'clouds.py'}:Clouds")
    # When it goes on, is killed, and started again
    wait_until(lambda: browser.evaluate(SHOWN)[0] >= 5, watch, aggregator, worker)
    aggregator.kill()
    aggregator.wait()
    wait_for_version(runs / "toy", 5)
    aggregator = start(*lead)
    # Then the page, which nobody has loaded again, shows it to its end
    wait_until(lambda: browser.evaluate(SHOWN) == [60, "finished"], watch)
    assert aggregator.wait() == 0, aggregator.output
    text = browser.evaluate("return document.body.innerText")
    assert "started 2 times" in text
    assert "180" in text
    assert browser.console() == []


def test_a_crowd_with_hostile_names_is_text_and_fits_a_phone(
    start: Start, browser: Browser, tmp_path: Path
) -> None:
    # Given a run of a thousand clients, whose workers have markup for names, in a folder that does
    write_crowd(tmp_path / "runs" / "<b>crowd", name=MARKUP)
    watch = start("watch", tmp_path / "runs", "--port", 0)
    url = served(watch)
    for width, scheme, paper in (
        (1280, "light", "rgb(246, 246, 247)"),
        (390, "dark", "rgb(22, 22, 24)"),
    ):
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width == 390}
        browser.command("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.command("Emulation.setEmulatedMedia", features=features)
        # When it is opened
        browser.open(url)
        wait_until(lambda: browser.evaluate(SHOWN) == [499, "running"], watch)
        # Then names are what they are, nothing is wider than the screen, and nothing was refused
        assert browser.evaluate("return document.querySelectorAll('img, h1 b').length") == 0
        names = browser.evaluate("return document.querySelector('#workers td').textContent")
        assert names.startswith(MARKUP)
        assert browser.evaluate("return document.getElementById('name').textContent") == "<b>crowd"
        assert browser.evaluate("return document.querySelectorAll('#charts figure').length") == 5
        assert browser.evaluate(WIDER) == 0
        colour = "return getComputedStyle(document.body).backgroundColor"
        assert browser.evaluate(colour) == paper
        assert browser.console() == []
