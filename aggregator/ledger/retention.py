"""Retention: which weights files a run still needs, and which version is its best."""

from __future__ import annotations

import json

from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.strategies.scores import score_of
from fluffle.schemas import Evaluation

#: While a version is evaluated newer ones are made: so many files wait for the answer, of so many
#: versions at most.
MAY_BE_BEST, _LOOK_BACK = 8, 1000


def needed_files(ledger: LedgerReader, keep: int, every_updates: int, replays: bool) -> set[str]:
    """Those of the last versions, the best, the open buffer's, and where a replay starts."""
    rows = ledger.query("SELECT file FROM versions ORDER BY version DESC LIMIT ?", keep)
    rows += _being_evaluated(ledger, every_updates)
    if (best := ledger.best()) is not None:
        rows.append((best[1],))
    if replays:
        rows += ledger.query("SELECT file FROM versions WHERE version = 0")
    buffer_file = ledger.meta.get("buffer_file")
    names = {name for (name,) in rows} | set(ledger.cache_files())
    return names | ({buffer_file} if buffer_file else set())


def new_best(ledger: LedgerReader, evaluation: Evaluation) -> str | None:
    """What to remember of this version if it is the best whose weights are still there."""
    score, best = score_of(evaluation.metrics), ledger.meta.get("best")
    if score is None or (best is not None and score <= json.loads(best)[2]):
        return None
    rows = ledger.query("SELECT file FROM versions WHERE version = ?", evaluation.version)
    if rows and (ledger.store.folder / rows[0][0]).exists():
        return json.dumps([evaluation.version, rows[0][0], score])
    return None


def _being_evaluated(ledger: LedgerReader, every_updates: int) -> list[tuple[str]]:
    """The first versions since the last evaluation that the evaluator may have taken.

    Its answer comes when newer versions have been made, and may say that one is the best.
    """
    last = ledger.query("SELECT MAX(version) FROM evaluations")[0][0]
    if last is None or not every_updates:
        return []
    return ledger.query(
        "SELECT file FROM (SELECT version, file, SUM(updates) OVER (ORDER BY version) AS since"
        " FROM (SELECT * FROM versions WHERE version > ? ORDER BY version LIMIT ?))"
        " WHERE since >= ? ORDER BY version LIMIT ?",
        *(last, _LOOK_BACK, every_updates, MAY_BE_BEST),
    )
