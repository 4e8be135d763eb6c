"""A run's totals, read beside the aggregator that writes them: what a scrape of metrics asks for.

Everything comes from the ledger, so that a counter goes on where it was when an aggregator starts
again. Read-only, and cheap however long the run: of the updates only those are read that were
recorded since the last time.
"""

from __future__ import annotations

import copy
import json
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from fluffle.aggregator.ledger import sums
from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.ledger.sites import Site, sites
from fluffle.aggregator.ledger.sums import Traffic, UpdateSums
from fluffle.schemas import UserError


@dataclass
class Totals:
    """The numbers of one run so far; of an update all that is recorded, counted or not yet."""

    run_id: str = ""
    experiment: str = ""
    elapsed_s: float = 0.0
    #: Versions by what closed their buffer (quorum, deadline); version 0 is none of them.
    versions: dict[str, int] = field(default_factory=dict)
    global_version: int = -1
    counted: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    dropouts: int = 0
    failures: int = 0
    #: Staleness -> updates.
    staleness: Counter[int] = field(default_factory=Counter)
    arrived: UpdateSums = field(default_factory=UpdateSums)
    #: What travelled besides: rejected, come again, lost.
    besides: Traffic = field(default_factory=Traffic)
    #: The newest evaluation, and the version that it is of.
    metrics: dict[str, float] = field(default_factory=dict)
    evaluated_version: int | None = None
    sites: list[Site] = field(default_factory=list)


class TotalsReader:
    """Reads one run folder again and again. Not thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._totals = Totals()
        self._last_row = 0

    def read(self) -> Totals:
        """The totals now; those of the last time where the ledger cannot be read just now."""
        try:
            with closing(LedgerReader(self._folder)) as ledger, ledger.snapshot():
                now = copy.deepcopy(self._totals)
                _read_run(ledger, now)
                _read_updates(ledger, self._last_row, now)
                ((last,),) = ledger.query("SELECT COALESCE(MAX(rowid), 0) FROM updates")
                self._totals, self._last_row = now, last
        except (UserError, sqlite3.Error):
            pass  # not there yet, or just being closed
        return self._totals


def _read_run(ledger: LedgerReader, now: Totals) -> None:
    meta = ledger.meta
    now.run_id = meta["run_id"]
    now.experiment = json.loads(meta["experiment"])["experiment"]["name"]
    now.elapsed_s = float(meta.get("elapsed_s", 0))
    now.duplicates = int(meta.get("duplicates", 0))
    now.global_version = ledger.latest_version()
    now.versions = sums.versions_by_closing(ledger)
    now.counted = sums.counted(ledger)
    now.rejected = sums.rejected(ledger)
    now.dropouts, now.failures = ledger.count("dropouts"), sums.failures(ledger)
    now.besides = sums.unrecorded(ledger)
    now.evaluated_version, now.metrics = sums.newest_evaluation(ledger)
    now.sites = sites(ledger)


def _read_updates(ledger: LedgerReader, after_row: int, now: Totals) -> None:
    """Add those that were recorded since; rows are never deleted."""
    for staleness, more in sums.sums_by_staleness(ledger, after_row).items():
        now.staleness[staleness] += more.updates
        now.arrived += more
