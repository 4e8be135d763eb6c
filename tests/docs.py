"""What the documentation shows, for tests that run it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "scripts"))  # where mkdocs finds it, too

import modules as modules  # noqa: E402
import reference  # noqa: E402

#: What a build of the site makes besides what is in docs/.
MADE = {
    "docs/reference/experiment.md": reference.experiment_page,
    "docs/reference/commands.md": reference.commands_page,
}


def pages() -> list[str]:
    """README and every page of docs/, by path from the root."""
    found = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")]
    return [*sorted(path.name for path in ROOT.glob("README*.md")), *sorted(found)]


def text_of(page: str) -> str:
    """The Markdown of a page, a made one included."""
    return MADE[page]() if page in MADE else (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[tuple[str, str]]:
    """Fenced blocks: their language and what is in them."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text_of(page), re.M | re.S)


def example(page: str, containing: str) -> str:
    """The one fenced block of a page that contains this text."""
    (found,) = [block for _, block in blocks(page) if containing in block]
    return found


def without_blocks(page: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)
