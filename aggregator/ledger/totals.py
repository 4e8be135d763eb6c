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
    examples: int = 0
    train_s: float = 0.0
    slot_s: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    #: The newest evaluation, and the version that it is of.
    metrics: dict[str, float] = field(default_factory=dict)
    evaluated_version: int | None = None


class TotalsReader:
    """Reads one run folder again and again. Not thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "ledger.sqlite"
        self._totals = Totals()
        self._last_row = 0

    def read(self) -> Totals:
        """The totals now; those of the last time where the ledger cannot be read just now."""
        where = f"{self._file.absolute().as_uri()}?mode=ro"
        try:
            with closing(sqlite3.connect(where, uri=True)) as db:
                db.execute("BEGIN")  # one moment for all that is read
                meta = dict(db.execute("SELECT key, value FROM meta"))
                if "run_id" in meta:
                    now = copy.deepcopy(self._totals)
                    _read_run(db, meta, now)
                    _read_updates(db, self._last_row, now)
                    rows = db.execute("SELECT COALESCE(MAX(rowid), 0) FROM updates").fetchone()
                    self._totals, self._last_row = now, rows[0]
        except sqlite3.Error:
            pass  # not there yet, or just being closed
        return self._totals


def _read_run(db: sqlite3.Connection, meta: dict[str, str], now: Totals) -> None:
    now.run_id = meta["run_id"]
    now.experiment = json.loads(meta["experiment"])["experiment"]["name"]
    now.elapsed_s = float(meta.get("elapsed_s", 0))
    now.duplicates = int(meta.get("duplicates", 0))
    now.versions, now.counted, now.global_version = {}, 0, -1
    for closed_by, versions, updates, newest in db.execute(
        "SELECT closed_by, COUNT(*), SUM(updates), MAX(version) FROM versions GROUP BY closed_by"
    ):
        now.global_version = max(now.global_version, newest)
        if closed_by != "initial":
            now.versions[closed_by] = versions
            now.counted += updates
    now.rejected = dict(
        db.execute("SELECT reason, SUM(times) FROM rejections GROUP BY reason").fetchall()
    )
    now.dropouts, now.failures = db.execute(
        "SELECT (SELECT COUNT(*) FROM dropouts), (SELECT COUNT(*) FROM failures)"
    ).fetchone()
    evaluated = db.execute(
        "SELECT version, metrics FROM evaluations ORDER BY version DESC, elapsed_s DESC LIMIT 1"
    ).fetchone()
    if evaluated is not None:
        now.evaluated_version, now.metrics = evaluated[0], json.loads(evaluated[1])


def _read_updates(db: sqlite3.Connection, after_row: int, now: Totals) -> None:
    """Add those that were recorded since; rows are never deleted, and numbered in their order."""
    for staleness, updates, examples, train_s, slot_s, up, down in db.execute(
        "SELECT staleness, COUNT(*), SUM(examples), SUM(train_s), SUM(slot_s), SUM(bytes_up),"
        " SUM(bytes_down) FROM updates WHERE rowid > ? AND turn > 0 GROUP BY staleness",
        (after_row,),
    ):
        now.staleness[staleness] += updates
        now.examples += examples
        now.train_s += train_s
        now.slot_s += slot_s
        now.bytes_up += up
        now.bytes_down += down
