"""The reading of one run for the live page: everything in one object of bounded size.

A look reads what was recorded since the last one, so that it costs the same on the first version
and on the ten-thousandth. Nothing is written, and no weights are read.
"""

from __future__ import annotations

import json
import math
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from fluffle.aggregator.ledger.reader import LEDGER, LedgerReader
from fluffle.aggregator.ledger.summary import CLIENT
from fluffle.aggregator.ledger.totals import TotalsReader
from fluffle.schemas import Experiment, UserError

#: At most so many of each in an object: points of a curve, metrics, rows of a table, bars, reasons.
POINTS, METRICS, ROWS, BARS, REASONS = 240, 4, 20, 20, 12
#: Letters of anybody's name, and of a sentence.
_NAME, _TEXT = 80, 240
#: Workers that are told apart; names come from the wire.
_MOST_WORKERS = 10_000
#: Time left follows from the pace of so many versions.
_PACE = 20


@dataclass
class _Worker:
    updates: int = 0
    train_s: float = 0.0
    seen_at: float | None = None
    version: int | None = None


class RunReading:
    """One run folder, read again and again. Not thread-safe."""

    def __init__(self, folder: Path, label: str) -> None:
        """``label`` is what the page calls it."""
        self.label = label
        self._folder = folder
        self._begin("")

    def _begin(self, run_id: str) -> None:
        self._run_id = run_id
        self._totals = TotalsReader(self._folder)
        self._workers: dict[str, _Worker] = {}
        #: Version -> seconds into the run, metrics: the evaluation that came first.
        self._evaluated: dict[int, tuple[float, dict[str, Any]]] = {}
        self._last_update = self._last_evaluation = 0
        self._seen: tuple[int, ...] = ()
        self._now: dict[str, Any] | None = None

    def look(self) -> dict[str, Any] | None:
        """The run as it stands; None until there is one that can be read.

        What was seen last stays where the ledger cannot be read just now: it is being moved, say.
        """
        seen = self._signature()
        if seen and seen != self._seen:
            try:
                with closing(LedgerReader(self._folder)) as ledger, ledger.snapshot():
                    self._now = self._read(ledger)
                self._seen = seen
            except (UserError, sqlite3.Error):
                pass  # not there yet, or not any more
        return self._now

    def _signature(self) -> tuple[int, ...]:
        """Changes whenever something is recorded."""
        found: list[int] = []
        for name in (LEDGER, f"{LEDGER}-wal"):
            try:
                stat = (self._folder / name).stat()
            except OSError:
                continue
            found += [stat.st_mtime_ns, stat.st_size]
        return tuple(found)

    def _read(self, ledger: LedgerReader) -> dict[str, Any]:
        meta = ledger.meta
        if meta["run_id"] != self._run_id:
            self._begin(meta["run_id"])  # another run has taken the folder
        experiment = Experiment.stored(meta["experiment"])
        self._read_workers(ledger)
        self._read_evaluations(ledger)
        totals = self._totals.read()
        reasons = sorted(totals.rejected.items(), key=lambda one: -one[1])
        version = ledger.latest_version()
        found = {
            "label": self.label,
            "run_id": meta["run_id"],
            "name": experiment.experiment.name,
            "strategy": experiment.aggregation.strategy,
            "task": experiment.task.name,
            "mode": experiment.participation.mode,
            "virtual": meta.get("clock") == "virtual",
            "status": meta["status"],
            "detail": _cut(meta.get("detail", ""), _TEXT),
            "version": version,
            "of_versions": experiment.experiment.versions,
            "epoch": int(meta.get("epoch", 0)),
            "elapsed_s": float(meta.get("elapsed_s", 0)),
            "changed_at": max(self._signature()[::2], default=0) / 1e9,
            "run_started": float(meta["run_started"]),
            **self._pace(ledger, experiment.experiment.versions - version),
            "clients": experiment.task.clients,
            "concurrency": experiment.participation.concurrency,
            "trigger": experiment.aggregation.trigger,
            "quorum": experiment.quorum,
            "buffered": ledger.count("updates WHERE disposition = 'buffered'"),
            "closed_by": totals.versions,
            "counted": totals.counted,
            "duplicates": totals.duplicates,
            "dropouts": totals.dropouts,
            "failures": totals.failures,
            "rejected": [[_cut(why, _TEXT), times] for why, times in reasons[:REASONS]],
            "rejected_more": sum(times for _, times in reasons[REASONS:]),
            "train_fraction": (
                totals.arrived.train_s / totals.arrived.slot_s if totals.arrived.slot_s else None
            ),
            "bytes_up": totals.arrived.bytes_up + totals.besides.bytes_up,
            "bytes_down": totals.arrived.bytes_down + totals.besides.bytes_down,
            "staleness": _bars(totals.staleness),
            "curves": self._curves(),
            "recent": _recent(ledger),
            "workers": self._worker_rows(),
            "workers_more": max(0, len(self._workers) - ROWS),
            "sites": [
                {
                    **{"name": _cut(site.name), "seen_at": site.seen_at, "version": site.version},
                    **{"counted": site.counted, "failed": site.failed, "rejected": site.rejected},
                }
                for site in totals.sites[:ROWS]
            ],
            "sites_more": max(0, len(totals.sites) - ROWS),
            "failed": [
                [_cut(client), _cut(worker), _cut(reason, _TEXT), at]
                for client, worker, reason, at in ledger.query(
                    "SELECT client, worker, reason, at FROM failures ORDER BY rowid DESC LIMIT 5"
                )
            ],
        }
        return {name: _finite(value) for name, value in found.items()}

    def _pace(self, ledger: LedgerReader, left: int) -> dict[str, float | None]:
        """``made_at``, ``pace_s`` and ``left_s``, in real seconds.

        The median of the last versions' intervals, which a pause does not change.
        """
        rows = ledger.query("SELECT made_at FROM versions ORDER BY version DESC LIMIT ?", _PACE + 1)
        made = [at for (at,) in rows]
        between = [later - earlier for later, earlier in pairwise(made)]
        pace = median(between) if between else None
        return {
            "made_at": made[0] if made else None,
            "pace_s": pace,
            "left_s": None if pace is None else pace * max(0, left),
        }

    def _read_workers(self, ledger: LedgerReader) -> None:
        for name, updates, train_s, made_at, version in ledger.query(
            "SELECT u.worker, COUNT(*), TOTAL(u.train_s), MAX(v.made_at), MAX(u.version)"
            " FROM updates u LEFT JOIN versions v ON v.version = u.version"
            " WHERE u.rowid > ? AND u.turn > 0 GROUP BY 1",
            self._last_update,
        ):
            if name not in self._workers and len(self._workers) >= _MOST_WORKERS:
                continue
            worker = self._workers.setdefault(name, _Worker())
            worker.updates += updates
            worker.train_s += train_s
            worker.seen_at, worker.version = made_at or worker.seen_at, version or worker.version
        ((self._last_update,),) = ledger.query("SELECT COALESCE(MAX(rowid), 0) FROM updates")

    def _read_evaluations(self, ledger: LedgerReader) -> None:
        for row, version, metrics, elapsed_s in ledger.query(
            "SELECT e.rowid, e.version, e.metrics, COALESCE(v.elapsed_s, e.elapsed_s)"
            " FROM evaluations e LEFT JOIN versions v ON v.version = e.version"
            " WHERE e.rowid > ? ORDER BY e.rowid",
            self._last_evaluation,
        ):
            self._evaluated.setdefault(version, (elapsed_s, json.loads(metrics)))
            self._last_evaluation = row

    def _curves(self) -> list[dict[str, Any]]:
        """A curve for each metric: ``points`` of version, seconds into the run, value."""
        order = sorted(self._evaluated.items())
        names = dict.fromkeys(name for _, (_, metrics) in order[-1:] for name in metrics)
        first = [name for name in ("accuracy", "loss") if name in names]
        others = [n for n in names if n not in first and not n.startswith(CLIENT)]
        curves = []
        for name in [*first, *others][:METRICS]:
            points = [[v, at, metrics[name]] for v, (at, metrics) in order if name in metrics]
            curves.append({"name": _cut(name), "points": [_finite(p) for p in _thinned(points)]})
        return curves

    def _worker_rows(self) -> list[dict[str, Any]]:
        """Those that were heard of last."""
        newest = sorted(self._workers.items(), key=lambda one: (-(one[1].seen_at or 0), one[0]))
        return [
            {
                **{"name": _cut(name), "updates": worker.updates, "seen_at": worker.seen_at},
                **{"train_s": worker.train_s / worker.updates, "version": worker.version},
            }
            for name, worker in newest[:ROWS]
        ]


def _recent(ledger: LedgerReader) -> list[dict[str, Any]]:
    """The updates that were recorded last, the newest first."""
    return [
        {
            **{"client": _cut(client), "worker": _cut(worker), "base": base, "version": version},
            **{"staleness": staleness, "examples": examples, "train_s": _finite(train_s)},
        }
        for client, worker, base, version, staleness, examples, train_s in ledger.query(
            "SELECT client, worker, base_version, version, staleness, examples, train_s"
            " FROM updates WHERE turn > 0 ORDER BY rowid DESC LIMIT ?",
            ROWS,
        )
    ]


def _bars(staleness: dict[int, int]) -> list[int]:
    """Updates by staleness 0, 1, …; the last bar is of all that are staler still."""
    if not staleness:
        return []
    bars = [0] * min(BARS, max(staleness) + 1)
    for stale, updates in staleness.items():
        bars[min(stale, BARS - 1)] += updates
    return bars


def _thinned(points: list[Any]) -> list[Any]:
    """At most ``POINTS`` of them, evenly, with the first and the last."""
    if len(points) <= POINTS:
        return points
    last = len(points) - 1
    return [points[round(i * last / (POINTS - 1))] for i in range(POINTS)]


def _cut(text: str, most: int = _NAME) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _finite(value: Any) -> Any:
    """The value; None where JSON has no number for it."""
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
