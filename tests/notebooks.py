"""Notebooks, executed as Jupyter does it: a kernel of their own, cell after cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

PATIENCE_S = 300


def execute(notebook: Path, folder: Path) -> str:
    """All that its cells show as text, run in ``folder``; what a cell raises is raised here."""
    read = nbformat.read(notebook, as_version=4)
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(read, timeout=PATIENCE_S, kernel_name="python3", resources=where).execute()
    return "\n".join(_text(out) for cell in read.cells for out in cell.get("outputs", ()))


def _text(output: Any) -> str:
    if output.output_type == "stream":
        return str(output.text)
    return str(output.data.get("text/plain", ""))
