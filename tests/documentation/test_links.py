"""Relative links and anchors of README and docs/ lead somewhere."""

from __future__ import annotations

import posixpath
import re

import pytest

from tests.docs import MADE, ROOT, pages, without_blocks

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*?)(?: \{ #(.+?) \})?$", re.M)
_MARKED = re.compile(r"\{ #(\S+?) \}")


def anchors(page: str) -> set[str]:
    """As GitHub and the site make them of headings, and those that a made page names itself."""
    text = without_blocks(page)
    slugs = [
        re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h, _ in _HEADING.findall(text)
    ]
    return {*slugs, *_MARKED.findall(text)}


@pytest.mark.parametrize("page", [*pages(), *MADE])
def test_every_relative_link_and_anchor_resolves(page: str) -> None:
    for link in _LINK.findall(without_blocks(page)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
        assert target in MADE or (ROOT / target).exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(target), f"{page} links to #{anchor}, which {target} lacks"


def test_a_page_on_paper_never_links_to_one_that_only_the_site_has() -> None:
    for page in pages():
        for link in _LINK.findall(without_blocks(page)):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link.split("#")[0]))
            assert target not in MADE, f"{page} links to {target}, which git does not have"
