"""Folds in the ledger: the one place that knows which columns of ``updates`` they take."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from fluffle.aggregator.coordinator.effects import Fold

#: A fold's field -> its column.
COLUMNS = {f.name: f.name for f in fields(Fold)} | {"received_bytes": "bytes_down"}
#: Fields that are kept as JSON.
_JSON = ("metrics", "norms")


def insert_folds(
    db: sqlite3.Connection, folds: Sequence[Fold], position: int, sizes: Mapping[str, int]
) -> None:
    """Add these to the open buffer, from this place on; ``sizes`` are their messages' bytes."""
    rows = [
        _row(fold) | {"position": position + i, "bytes_up": sizes.get(fold.update_id, 0)}
        for i, fold in enumerate(folds)
    ]
    columns = [*COLUMNS.values(), "position", "bytes_up"]
    db.executemany(
        f"INSERT INTO updates (disposition, {', '.join(columns)})"
        f" VALUES ('buffered', {', '.join(f':{column}' for column in columns)})",
        rows,
    )


def buffered_folds(db: sqlite3.Connection) -> list[Fold]:
    """Those of the open buffer, in the order of arrival."""
    return _select(db, "disposition = 'buffered' ORDER BY position")


def counted_folds(db: sqlite3.Connection, since: int) -> list[list[Fold]]:
    """Those of each version from ``since`` on; of version 0 none."""
    versions = db.execute("SELECT version FROM versions WHERE version >= ? ORDER BY 1", (since,))
    return [version_folds(db, version) for (version,) in versions.fetchall()]


def version_folds(db: sqlite3.Connection, version: int) -> list[Fold]:
    """Those of one version, in the order of arrival."""
    where = "disposition = 'counted' AND version = ? AND turn > 0 ORDER BY position"
    return _select(db, where, version)


def _select(db: sqlite3.Connection, where: str, *parameters: object) -> list[Fold]:
    columns = ", ".join(COLUMNS.values())
    rows = db.execute(f"SELECT {columns} FROM updates WHERE {where}", parameters)
    return [_fold(dict(zip(COLUMNS, row, strict=True))) for row in rows]


def _row(fold: Fold) -> dict[str, Any]:
    values = asdict(fold) | {name: json.dumps(getattr(fold, name)) for name in _JSON}
    return {column: values[name] for name, column in COLUMNS.items()}


def _fold(values: dict[str, Any]) -> Fold:
    return Fold(**values | {name: json.loads(values[name]) for name in _JSON})
