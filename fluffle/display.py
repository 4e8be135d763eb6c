"""The display of a run for a person: a live block on a terminal, else a line now and then."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fluffle import logs
from fluffle.aggregator import progress
from fluffle.aggregator.service import AggregatorService
from fluffle.invocation import to_paste
from fluffle.notebook_display import NotebookBlock, in_notebook
from fluffle.schemas.sizes import MB, human_bytes

_log = logging.getLogger(__name__)

_LINE_EVERY_S = 10.0
#: Rates are over this much of the recent past.
_WINDOW_S = 15.0


@dataclass(frozen=True)
class Snapshot:
    """Where a run stands right now."""

    phase: str
    version: int
    versions: int
    #: The newest evaluation's accuracy, or the loss of a task that has none: name and value.
    measured: tuple[str, str] | None
    updates: int
    #: None where nobody is given turns: a run of sites alone.
    in_flight: int | None
    buffer: int
    quorum: int
    #: Workers that said they are here, and their slots; (0, 0) under the virtual clock.
    workers: tuple[int, int] = (0, 0)


def snapshot(service: AggregatorService) -> Snapshot | None:
    """Reads the service from outside its thread; numbers may be one message old."""
    coordinator, presence = service.coordinator, service.presence
    if coordinator is None:
        return None
    evaluated = coordinator.evaluated
    return Snapshot(
        phase=coordinator.phase,
        version=coordinator.version,
        versions=service.experiment.experiment.versions,
        measured=next(iter(readable(evaluated.metrics)), None) if evaluated else None,
        updates=coordinator.updates + coordinator.buffer.size,
        in_flight=len(coordinator.turns.open) if service.experiment.task.clients else None,
        buffer=coordinator.buffer.size,
        quorum=service.experiment.quorum,
        workers=(presence.workers, presence.slots) if presence else (0, 0),
    )


class Display:
    """Shows a run, and what is logged meanwhile, on stderr: stdout is free for the summary."""

    def __init__(self, name: str, quiet: bool = False) -> None:
        self._name = name
        self._quiet = quiet
        self._live: Live | NotebookBlock
        self._is_live = True
        if in_notebook():
            self.console = Console(file=sys.stdout, highlight=False, force_jupyter=False)
            self._live = NotebookBlock()
        else:
            # A descriptor of its own: TensorFlow's import turns stderr off for a moment.
            self.console = Console(file=os.fdopen(os.dup(2), "w"), highlight=False)
            self._live = Live(console=self.console, refresh_per_second=5, transient=True)
            self._is_live = self.console.is_terminal
        self._history: deque[tuple[float, int, int]] = deque()
        self._last_line = -_LINE_EVERY_S
        self._until_exit = ExitStack()

    def __enter__(self) -> Display:
        form = self._until_exit.enter_context(logs.written_by(self.line))
        self._until_exit.enter_context(logs.silenced(progress.log))  # it is shown here
        if self._is_live and not self._quiet and form == "text":
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.rest()
        self._until_exit.close()

    def rest(self) -> None:
        """The live block goes; lines may still come."""
        if self._live.is_started:
            self._live.stop()

    def line(self, text: str) -> None:
        """One line that stays; what others wrote is in it, so it is no markup."""
        self.console.print(Text(text), soft_wrap=True)

    def show(self, now: Snapshot | None) -> None:
        """The state of the run, a few times a second."""
        if self._live.is_started:
            self._live.update(self._block(now))
        elif now is not None and self._line_is_due():
            _log.info("  ".join(f"{key} {value}" for key, value in self._fields(now)))

    def fetching(self, what: str, done: int, total: int | None) -> None:
        """A data set on its way, in bytes."""
        if self._live.is_started:
            bar = ProgressBar(total=total, completed=done, width=30, pulse=total is None)
            grid = Table.grid(padding=(0, 2))
            grid.add_row(what, bar, human_bytes(done) if done else "")
            self._live.update(grid)
        elif total is None or self._line_is_due():
            _log.info(what)

    def _line_is_due(self) -> bool:
        due = not self._quiet and time.monotonic() - self._last_line >= _LINE_EVERY_S
        if due:
            self._last_line = time.monotonic()
        return due

    def _block(self, now: Snapshot | None) -> Table:
        grid = Table.grid(padding=(0, 2))
        if now is None or now.phase == "initialising":
            grid.add_row(Text(self._name, "bold"), "starting the trainers …")
            return grid
        bar = ProgressBar(total=now.versions, completed=now.version, width=30)
        grid.add_row(Text(self._name, "bold"), bar)
        for key, value in self._fields(now):
            grid.add_row(Text(key, "dim"), Text(value))
        return grid

    def _fields(self, now: Snapshot) -> list[tuple[str, str]]:
        updates_per_s, left_s = self._rates(now)
        workers, slots = now.workers
        return [
            ("version", f"{now.version} of {now.versions}"),
            now.measured or ("evaluation", "–"),
            ("updates/s", "–" if updates_per_s is None else f"{updates_per_s:.1f}"),
            *([("workers", f"{workers} with {slots} slots")] if workers else []),
            *([("in flight", str(now.in_flight))] if now.in_flight is not None else []),
            ("buffer", f"{now.buffer} of {now.quorum}"),
            ("time left", "–" if left_s is None else _duration(left_s)),
        ]

    def _rates(self, now: Snapshot) -> tuple[float | None, float | None]:
        self._history.append((time.monotonic(), now.updates, now.version))
        while self._history[-1][0] - self._history[0][0] > _WINDOW_S:
            self._history.popleft()
        (then, updates, version), (last, *_) = self._history[0], self._history[-1]
        passed = last - then
        if passed < 1 or now.version == version:
            return None, None
        per_version = passed / (now.version - version)
        return (now.updates - updates) / passed, per_version * (now.versions - now.version)


def print_summary(console: Console, summary: dict[str, Any], folder: Path) -> None:
    """The end of a run, for a person."""
    rejected = sum(summary["updates_rejected"].values())
    lost = f"{rejected} rejected, {summary['dropouts']} dropouts, {summary['failures']} failures"
    rows = [
        ("status", _status(summary)),
        ("versions", str(summary["versions"])),
        ("updates", f"{summary['updates_counted']} counted, {lost}"),
        *(readable(summary["metrics"]) or [("evaluation", "–")]),
        *([("by client", _by_client(summary["by_client"]))] if summary.get("by_client") else []),
        ("time", f"{_duration(summary['wall_s'])}, {summary['updates_per_s'] or '–'} updates/s"),
        *([("virtual time", _duration(summary["virtual_s"]))] if summary["virtual_s"] else []),
        ("training", f"{_percent(summary['train_fraction'])} of the slots' time"),
        ("memory", f"{human_bytes(MB * summary['peak_rss_mb'])} at its peak"),
        *_privacy(summary.get("privacy")),
        *([("kept", _kept(summary))] if summary.get("kept_updates") else []),
        ("run folder", str(folder)),
        ("model", _model(folder)),
        ("report", to_paste("report", folder)),
    ]
    grid = Table.grid(padding=(0, 2))
    for key, value in rows:
        grid.add_row(Text(key, "dim"), Text(value))  # the names of others are no markup
    console.print(grid)


def _status(summary: dict[str, Any]) -> str:
    status, detail = summary["status"], summary["detail"]
    return f"{status} ({detail})" if detail else str(status)


def _by_client(found: dict[str, float]) -> str:
    """The spread that ``evaluation.by_client`` measures, or whatever an evaluator calls so."""
    if {"accuracy_worst", "accuracy_p10", "accuracy_std"} <= found.keys():
        worst, tenth = _percent(found["accuracy_worst"]), _percent(found["accuracy_p10"])
        return (
            f"worst {worst}, worst tenth {tenth}, spread {found['accuracy_std'] * 100:.1f} points"
        )
    if {"loss_worst", "loss_std"} <= found.keys():
        return f"worst loss {found['loss_worst']:.4g}, spread {found['loss_std']:.2g}"
    return ", ".join(f"{name} {value:.4g}" for name, value in found.items())


def readable(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """The accuracy, else the loss; then what else the task measures."""
    shown = {n: f"{value:.4g}" for n, value in metrics.items() if not n.startswith("client_")}
    if "accuracy" in metrics:
        del shown["accuracy"]
        shown.pop("loss", None)
        shown = {"accuracy": _percent(metrics["accuracy"]), **shown}
    elif "loss" in shown:
        shown = {"loss": shown.pop("loss"), **shown}
    return [(name.replace("_", " "), value) for name, value in shown.items()]


def _privacy(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Epsilon, and what it stands on."""
    if found is None or found["epsilon"] is None:
        return []
    told = f"epsilon {found['epsilon']:.3g}, delta {found['delta']:g}: {found['adjacency']}"
    return [("privacy", told), *(("", f"but {caveat}") for caveat in found["caveats"])]


def _model(folder: Path) -> str:
    made = [folder / name for name in ("model.keras", "model.npz")]  # of an ArrayTask
    return next((str(path) for path in made if path.exists()), to_paste("export", folder))


def _kept(summary: dict[str, Any]) -> str:
    return f"{summary['kept_updates']} updates, {human_bytes(summary['kept_bytes'])}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
