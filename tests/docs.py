"""What the documentation shows, for tests that run it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def example(page: str, containing: str) -> str:
    """The one fenced block of a page that contains this text."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    (found,) = [block for block in blocks if containing in block]
    return str(found)
