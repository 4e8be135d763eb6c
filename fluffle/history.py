"""The history of a run, a row for each version: for CSV, JSON lines, TensorBoard and MLflow."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from fluffle.aggregator.ledger.reader import LedgerReader

Row = dict[str, Any]


def history(ledger: LedgerReader, after: int = -1) -> list[Row]:
    """The versions after this one, in order.

    ``version``; ``time_s``, virtual or real, and ``made_at``, Unix time, of its making; what closed
    its buffer; its ``updates``, all ``updates_total`` until then, their examples, mean staleness
    and bytes; ``train_…``: what its clients measured while they trained, weighted by examples; and
    of a version that was evaluated ``evaluated_examples`` and its metrics.
    """
    updates, evaluations = _updates(ledger, after), _evaluations(ledger, after)
    total = ledger.count(
        "updates WHERE disposition = 'counted' AND turn > 0 AND version <= ?", after
    )
    rows = []
    for version, time_s, made_at, closed_by in ledger.query(
        "SELECT version, elapsed_s, made_at, closed_by FROM versions WHERE version > ?"
        " ORDER BY version",
        after,
    ):
        row: Row = {"version": version, "time_s": time_s, "made_at": made_at}
        counted = updates.get(version, [])
        total += len(counted)
        row |= {"closed_by": closed_by, "updates": len(counted), "updates_total": total}
        row |= _sums(counted)
        if version in evaluations:
            examples, metrics = evaluations[version]
            row["evaluated_examples"] = examples
            row |= _beside(row, metrics)
        rows.append(row)
    return rows


def columns(rows: Iterable[Row]) -> list[str]:
    """The names of all rows' values, those of the first row first."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _updates(ledger: LedgerReader, after: int) -> dict[int, list[Any]]:
    by_version: dict[int, list[Any]] = {}
    for version, *update in ledger.query(
        "SELECT version, examples, staleness, bytes_up, bytes_down, metrics FROM updates"
        " WHERE disposition = 'counted' AND turn > 0 AND version > ? ORDER BY version, position",
        after,
    ):
        by_version.setdefault(version, []).append(update)
    return by_version


def _sums(updates: list[Any]) -> Row:
    examples, staleness, up, down, metrics = zip(*updates, strict=True) if updates else ((),) * 5
    row: Row = {
        "examples": sum(examples),
        "staleness_mean": sum(staleness) / len(staleness) if updates else None,
        "bytes_up": sum(up),
        "bytes_down": sum(down),
    }
    sums: dict[str, tuple[float, int]] = {}
    for text, count in zip(metrics, examples, strict=True):
        for name, value in json.loads(text).items():
            before, weight = sums.get(name, (0.0, 0))
            sums[name] = (before + value * count, weight + count)
    means = {f"train_{name}": s / weight for name, (s, weight) in sums.items() if weight}
    return row | _beside(row, means)


def _beside(row: Row, metrics: Row) -> Row:
    """The metrics, none of them under the name of a column that is there."""
    return {f"metric_{name}" if name in row else name: v for name, v in metrics.items()}


def _evaluations(ledger: LedgerReader, after: int) -> dict[int, tuple[int, Row]]:
    return {
        version: (examples, json.loads(metrics))
        for version, metrics, examples, _ in ledger.evaluations()
        if version > after
    }
