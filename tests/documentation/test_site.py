"""`make docs` builds a site without a warning, and what it shows is in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import ROOT, pages

pytest.importorskip("mkdocs", reason="pip install 'fluffle[docs]'")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert built.returncode == 0, built.stderr
    return folder


def test_every_page_of_docs_is_in_the_site_and_in_its_navigation(site: Path) -> None:
    navigation = (site / "index.html").read_text()
    for page in pages():
        if page.startswith("docs/"):
            place = page.removeprefix("docs/").removesuffix(".md") + ".html"
            assert (site / place).is_file()
            assert f'href="{place}"' in navigation or place == "index.html"


def test_the_reference_is_made_from_the_code(site: Path) -> None:
    assert 'id="aggregation.quorum"' in (site / "reference" / "experiment.html").read_text()
    assert 'id="fluffle-run"' in (site / "reference" / "commands.html").read_text()


def test_links_out_of_docs_lead_to_pages_that_show_the_file(site: Path) -> None:
    assert 'href="files/experiments/article.toml.html"' in (site / "simulate.html").read_text()
    shown = (site / "files" / "experiments" / "article.toml.html").read_text()
    assert "exponential" in shown
    assert (site / "files" / "benchmarks" / "fedprox" / "index.html").is_file()


def test_drawings_are_handed_to_the_script_that_draws(site: Path) -> None:
    assert '<pre class="mermaid"><code>sequenceDiagram' in (site / "concepts.html").read_text()
