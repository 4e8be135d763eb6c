"""The map of the modules, docs/modules.md: a line for each, from its docstring.

``python scripts/modules.py`` writes the page.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "modules.md"
#: In the order in which data passes them: whoever reads from the top needs nothing from below.
ROOMS = ("schemas", "broker", "aggregator", "worker", "helper", "simulation", "fluffle")
LONGEST = 150
HEAD = """# Every module

A line for each, as its docstring begins. `python scripts/modules.py` writes this page.
[Architecture](architecture.md) says how they work together,
[CONTRIBUTING.md](../CONTRIBUTING.md) where to begin.
"""


def said(path: Path) -> str:
    """How a module's docstring begins: its first paragraph, or the first sentence of a long one."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(docstring.split("\n\n")[0].split()).rstrip(":").replace("``", "`")
    return first if len(first) <= LONGEST else re.split(r"(?<=\.) (?=[A-Z])", first)[0]


def packages() -> list[Path]:
    """Every folder with modules, from the root; a package before those inside it."""
    found = []
    for room in ROOMS:
        inside = sorted(path.parent for path in (ROOT / room).rglob("__init__.py"))
        linked = [ROOT / room / name for name in ROOMS]
        found += [p for p in inside if not any(p.is_relative_to(link) for link in linked)]
    return [path.relative_to(ROOT) for path in found]


def page() -> str:
    """The page, as Markdown."""
    lines = [HEAD]
    for package in packages():
        lines += [f"## {package}/\n", said(ROOT / package / "__init__.py") + "\n"]
        modules = sorted((ROOT / package).glob("*.py"))
        told = [path for path in modules if path.name != "__init__.py"]
        if told:
            rows = [f"| `{path.name}` | {said(path)} |" for path in told]
            lines += ["| module | |", "| --- | --- |", *rows, ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
