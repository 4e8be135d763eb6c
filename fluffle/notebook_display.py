"""A live block in a notebook: the newest state in the place of the one before, and no widget."""

from __future__ import annotations

import importlib
import io
import sys
from typing import Any

from rich.console import Console, RenderableType

#: Of a page: the notebook's own colours, whatever its theme.
_FORMAT = "<pre style='white-space:pre;line-height:normal'>{code}</pre>"
_COLUMNS = 100


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    return "ipykernel" in sys.modules and Console().is_jupyter


class NotebookBlock:
    """As far as the display uses it, Rich's ``Live``, shown as HTML by IPython."""

    def __init__(self) -> None:
        self._handle: Any = None

    @property
    def is_started(self) -> bool:
        """Whether the block is shown."""
        return self._handle is not None

    def start(self) -> None:
        """Show it, empty."""
        shown = _ipython()
        self._handle = shown.display(shown.HTML(""), display_id=True)

    def update(self, what: RenderableType) -> None:
        """Show this in its place."""
        self._handle.update(_ipython().HTML(_html(what)))

    def stop(self) -> None:
        """Leave an empty place."""
        self._handle.update(_ipython().HTML(""))
        self._handle = None


def _ipython() -> Any:
    """A kernel has it; nothing else needs it."""
    return importlib.import_module("IPython.display")


def _html(what: RenderableType) -> str:
    console = Console(
        file=io.StringIO(), record=True, width=_COLUMNS, force_terminal=True, force_jupyter=False
    )
    console.print(what)
    return console.export_html(inline_styles=True, code_format=_FORMAT)
