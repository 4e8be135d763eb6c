"""Sums over a ledger: the one place that adds up what a summary, metrics and a report show.

``TOTAL`` instead of ``SUM``: nothing that a message may claim overflows it, and sums below 2^53
are exact.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from fluffle.aggregator.ledger.reader import LedgerReader


@dataclass(frozen=True, slots=True)
class UpdateSums:
    """Over updates that arrived and were folded, version 0's excepted."""

    updates: int = 0
    examples: int = 0
    train_s: float = 0.0
    slot_s: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0

    def __add__(self, other: UpdateSums) -> UpdateSums:
        return UpdateSums(
            self.updates + other.updates,
            self.examples + other.examples,
            self.train_s + other.train_s,
            self.slot_s + other.slot_s,
            self.bytes_up + other.bytes_up,
            self.bytes_down + other.bytes_down,
        )


@dataclass(frozen=True, slots=True)
class Traffic:
    """Messages of one disposition, their bytes, and those of the models fetched for them."""

    messages: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.messages + other.messages,
            self.bytes_up + other.bytes_up,
            self.bytes_down + other.bytes_down,
        )


def traffic(ledger: LedgerReader) -> dict[str, Traffic]:
    """All that travelled, version 0 excepted: by the disposition of updates that were recorded
    (counted, buffered, unused), by the reason of what was rejected, ``duplicate``, and, where
    devices are simulated, by where it was lost (``lost_upload``, …).
    """
    recorded = ledger.query(
        "SELECT disposition, COUNT(*), TOTAL(bytes_up), TOTAL(bytes_down) FROM updates"
        " WHERE turn > 0 GROUP BY 1"
    )
    return {
        disposition: Traffic(int(messages), int(up), int(down))
        for disposition, messages, up, down in [*recorded, *unrecorded_rows(ledger)]
    }


def unrecorded(ledger: LedgerReader) -> Traffic:
    """The part of it that has no row of its own."""
    return sum(
        (Traffic(int(n), int(up), int(down)) for _, n, up, down in unrecorded_rows(ledger)),
        Traffic(),
    )


def unrecorded_rows(ledger: LedgerReader) -> list[tuple[str, float, float, float]]:
    """Disposition, messages, bytes up and down of what has no row of its own."""
    return ledger.query(
        "SELECT disposition, TOTAL(messages), TOTAL(bytes_up), TOTAL(bytes_down) FROM traffic"
        " GROUP BY 1 ORDER BY 2 DESC"
    )


def sums_by_staleness(ledger: LedgerReader, after_row: int = 0) -> dict[int, UpdateSums]:
    """Of those that were recorded after this row; rows are numbered in their order."""
    return {
        staleness: UpdateSums(
            updates, int(examples), train_s, slot_s, int(bytes_up), int(bytes_down)
        )
        for staleness, updates, examples, train_s, slot_s, bytes_up, bytes_down in ledger.query(
            "SELECT staleness, COUNT(*), TOTAL(examples), TOTAL(train_s), TOTAL(slot_s),"
            " TOTAL(bytes_up), TOTAL(bytes_down) FROM updates WHERE rowid > ? AND turn > 0"
            " GROUP BY staleness",
            after_row,
        )
    }


def sums(ledger: LedgerReader) -> UpdateSums:
    """Of the whole run so far."""
    return sum(sums_by_staleness(ledger).values(), UpdateSums())


def counted(ledger: LedgerReader) -> int:
    """Updates that versions count."""
    return ledger.count("updates WHERE disposition = 'counted' AND version > 0")


def counted_by_version(ledger: LedgerReader) -> list[tuple[int, float, int, int]]:
    """Version, seconds into the run, updates counted in it, and all bytes both ways that travelled
    since the version before: what of it was not counted, too.
    """
    rows = ledger.query(
        "SELECT v.version, v.elapsed_s, COUNT(u.update_id), TOTAL(u.bytes_up + u.bytes_down)"
        " FROM versions v LEFT JOIN updates u ON u.version = v.version AND u.turn > 0"
        " AND u.disposition = 'counted' GROUP BY v.version ORDER BY v.version"
    )
    others = "SELECT version, TOTAL(bytes_up + bytes_down) FROM traffic GROUP BY 1"
    besides: dict[int, float] = dict(ledger.query(others))
    return [
        (version, made_s, updates, int(size + besides.get(version - 1, 0)))
        for version, made_s, updates, size in rows
    ]


def versions_by_closing(ledger: LedgerReader) -> dict[str, int]:
    """How many versions each thing has closed; version 0 is none of them."""
    return dict(
        ledger.query(
            "SELECT closed_by, COUNT(*) FROM versions WHERE closed_by != 'initial' GROUP BY 1"
        )
    )


def rejected(ledger: LedgerReader) -> dict[str, int]:
    """Messages by the reason why they were rejected, the most frequent first."""
    rows = ledger.query("SELECT reason, TOTAL(times) FROM rejections GROUP BY 1 ORDER BY 2 DESC")
    return {reason: int(times) for reason, times in rows}


def failures(ledger: LedgerReader) -> int:
    """Trainings that failed."""
    return int(ledger.query("SELECT TOTAL(times) FROM failures")[0][0])


def failures_by_reason(ledger: LedgerReader, length: int) -> dict[str, int]:
    """Trainings that failed, by so much of the reason, the most frequent first."""
    rows = ledger.query(
        "SELECT substr(reason, 1, ?), TOTAL(times) FROM failures GROUP BY 1 ORDER BY 2 DESC", length
    )
    return {reason: int(times) for reason, times in rows}


def newest_evaluation(ledger: LedgerReader) -> tuple[int | None, dict[str, float]]:
    """The newest version that was evaluated, and its metrics; None and none where none was."""
    rows = ledger.query(
        "SELECT version, metrics FROM evaluations ORDER BY version DESC, elapsed_s DESC LIMIT 1"
    )
    return (rows[0][0], json.loads(rows[0][1])) if rows else (None, {})
