"""Command lines to paste: as this program was started, quoted for a shell."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def to_paste(*words: str | Path) -> str:
    """This program with these words after it."""
    return shlex.join([*_program(), *map(str, words)])


def _program() -> list[str]:
    started = sys.argv[0]
    if Path(started).name == "__main__.py":
        python = Path(sys.executable)
        found = shutil.which(python.name)
        return [python.name if found == str(python) else str(python), "-m", "fluffle"]
    if Path(started).name != "fluffle" or shutil.which("fluffle") == started:
        return ["fluffle"]  # in another program's process, or on the path
    return [started]
