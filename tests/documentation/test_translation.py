"""README.zh-CN.md says what README.md says: the same blocks, sections, tables and links."""

from __future__ import annotations

import re

from tests.docs import blocks, text_of, without_blocks

ENGLISH, CHINESE = "README.md", "README.zh-CN.md"


def test_both_have_the_same_blocks() -> None:
    assert blocks(ENGLISH) == blocks(CHINESE)


def test_both_have_sections_of_the_same_levels_and_tables_of_the_same_rows() -> None:
    for what in (r"^#+", r"^\|(?: --- \|)+$", r"^(?:\||- )"):
        english, chinese = (
            re.findall(what, without_blocks(page), re.M) for page in (ENGLISH, CHINESE)
        )
        assert english == chinese


def test_both_link_to_the_same_places_in_the_same_order_and_to_each_other() -> None:
    links = {page: re.findall(r"\]\(([^)\s]+)\)", text_of(page)) for page in (ENGLISH, CHINESE)}
    assert CHINESE in links[ENGLISH]
    assert ENGLISH in links[CHINESE]
    links[ENGLISH].remove(CHINESE)
    links[CHINESE].remove(ENGLISH)
    assert links[ENGLISH] == links[CHINESE]


def test_both_name_the_same_commands_files_and_figures() -> None:
    english, chinese = (
        sorted(set(re.findall(r"`([^`]+)`", without_blocks(page)))) for page in (ENGLISH, CHINESE)
    )
    assert english == chinese
    english, chinese = (figures(page) for page in (ENGLISH, CHINESE))
    assert english == chinese


def figures(page: str) -> list[str]:
    """Numbers in tables, row by row: they are what changes."""
    rows = [row for row in without_blocks(page).splitlines() if row.startswith("|")]
    return [" ".join(sorted(re.findall(r"\d[\d.,]*\d|\d", row))) for row in rows]
