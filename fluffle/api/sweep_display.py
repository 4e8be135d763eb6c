"""The display of a sweep: how many of its runs are done, and how long the rest will take."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fluffle.api.plans import Cell, SweepPlan
from fluffle.api.sweeping import DONE, reason_of, status_of
from fluffle.notebook_display import NotebookBlock, in_notebook

_log = logging.getLogger(__name__)
#: What is neither a terminal nor a notebook gets a line so often.
_LINE_EVERY_S = 10.0
#: Looking at the folders of many runs takes a while.
_LOOK_EVERY_S = 1.0


class SweepDisplay:
    """Shown on a terminal (stderr) or in a notebook; else a line now and then."""

    def __init__(self, folder: Path, plan: SweepPlan, *, shown: bool) -> None:
        self._folder = folder
        self._waiting = {cell.folder: cell for cell in plan.cells}
        self._failed = 0
        console = Console(file=sys.stderr, highlight=False)
        self._notebook = NotebookBlock() if shown and in_notebook() else None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(30),
            MofNCompleteColumn(),
            TextColumn("runs"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not shown or not console.is_terminal or self._notebook is not None,
        )
        self._lines = shown and self._notebook is None and not console.is_terminal
        self._task = self._progress.add_task(folder.name, total=len(self._waiting))
        self._last_line, self._last_look = time.monotonic(), 0.0

    def __enter__(self) -> SweepDisplay:
        self._progress.start()
        if self._notebook is not None:
            self._notebook.start()
        self.look(now=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self.look(now=True)
        self._progress.stop()
        if self._notebook is not None:
            self._notebook.stop()
        if self._failed:
            _log.warning(
                "%s of the runs in %s failed: see their failed.txt", self._failed, self._folder
            )

    def told(self, cell: Cell, how: str) -> None:
        """A run has ended."""
        if self._waiting.pop(cell.folder, None) is None:
            return
        if how == "failed":
            self._failed += 1
            why = reason_of(self._folder / cell.folder)
            _log.warning("%s failed: %s", cell.folder, why)
        self._progress.advance(self._task)
        self._show(cell)

    def look(self, now: bool = False) -> None:
        """See which have ended since, whoever did them."""
        if not now and time.monotonic() - self._last_look < _LOOK_EVERY_S:
            return
        self._last_look = time.monotonic()
        for cell in list(self._waiting.values()):
            how = status_of(self._folder / cell.folder)
            if how in (*DONE, "failed"):
                self.told(cell, how)

    def _show(self, cell: Cell) -> None:
        task: Any = self._progress.tasks[0]
        if self._notebook is not None:
            self._notebook.update(self._progress.get_renderable())
        elif self._lines and time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._last_line = time.monotonic()
            _log.info("%d of %d runs: %s", task.completed, task.total, cell.folder)
