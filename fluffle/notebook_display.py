"""A live block in a notebook: the newest state in the place of the one before, and no widget."""

from __future__ import annotations

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
        from IPython.display import HTML, display

        self._handle = display(HTML(""), display_id=True)  # type: ignore[no-untyped-call]

    def update(self, what: RenderableType) -> None:
        """Show this in its place."""
        from IPython.display import HTML

        self._handle.update(HTML(_html(what)))  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """Leave an empty place."""
        from IPython.display import HTML

        self._handle.update(HTML(""))  # type: ignore[no-untyped-call]
        self._handle = None


def _html(what: RenderableType) -> str:
    console = Console(
        file=io.StringIO(), record=True, width=_COLUMNS, force_terminal=True, force_jupyter=False
    )
    console.print(what)
    return console.export_html(inline_styles=True, code_format=_FORMAT)
