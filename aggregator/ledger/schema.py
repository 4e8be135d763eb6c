"""The tables of a ledger, and how a ledger of an earlier version gets them.

Dispositions of an update: ``buffered`` (in the open buffer, by a partial checkpoint), ``counted``
(in a version), ``unused`` (the run ended before its buffer closed). Rejections are kept by the
hash of the message, since a rejected message may carry anybody's id. ``position`` is an update's
place in its buffer, in the order of arrival. ``kept`` says where an archived update lies,
``cache`` the file of each entry that a strategy keeps for a client, as of the last version.

``PRAGMA user_version`` counts the ``MIGRATIONS`` that a ledger has been through.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from fluffle.schemas import UserError

#: The tables of ledgers that did not say their version yet: some of these, or all.
_FIRST = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS versions (
    version INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, closed_by TEXT NOT NULL,
    updates INTEGER NOT NULL, weights_sha256 TEXT NOT NULL, file TEXT NOT NULL,
    made_at REAL NOT NULL, elapsed_s REAL NOT NULL);
CREATE TABLE IF NOT EXISTS updates (
    update_id TEXT PRIMARY KEY, disposition TEXT NOT NULL, version INTEGER, position INTEGER,
    client TEXT NOT NULL, turn INTEGER NOT NULL, base_version INTEGER NOT NULL,
    staleness INTEGER NOT NULL, examples INTEGER NOT NULL, worker TEXT NOT NULL,
    metrics TEXT NOT NULL, train_s REAL NOT NULL, slot_s REAL NOT NULL,
    bytes_up INTEGER NOT NULL, bytes_down INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS updates_by_version ON updates (version);
CREATE TABLE IF NOT EXISTS kept (
    update_id TEXT PRIMARY KEY, segment TEXT NOT NULL, start INTEGER NOT NULL,
    bytes INTEGER NOT NULL, sha256 TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS cache (entry TEXT PRIMARY KEY, file TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS waiting (update_id TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS rejections (
    message_sha256 TEXT PRIMARY KEY, message_id TEXT NOT NULL, reason TEXT NOT NULL,
    times INTEGER NOT NULL, at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS rejections_by_id ON rejections (message_id);
CREATE TABLE IF NOT EXISTS failures (
    assignment_id TEXT PRIMARY KEY, client TEXT NOT NULL, worker TEXT NOT NULL,
    reason TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS dropouts (
    assignment_id TEXT PRIMARY KEY, client TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS evaluations (
    version INTEGER NOT NULL, worker TEXT NOT NULL, metrics TEXT NOT NULL,
    examples INTEGER NOT NULL, seconds REAL NOT NULL, elapsed_s REAL NOT NULL,
    PRIMARY KEY (version, worker))
"""

#: Failures that came on top of those that were asked for are one row; how long updates were, by
#: group of tensors.
_TIMES_AND_NORMS = """
ALTER TABLE failures ADD COLUMN times INTEGER NOT NULL DEFAULT 1;
CREATE INDEX failures_by_client ON failures (client);
ALTER TABLE updates ADD COLUMN norms TEXT NOT NULL DEFAULT '{}'
"""

#: Who sent what was rejected, as far as the broker vouches for it.
_SENDERS = """
ALTER TABLE rejections ADD COLUMN sender TEXT NOT NULL DEFAULT ''
"""

#: What else travelled, besides updates that have a row: rejected, come again, lost on a simulated
#: device. ``version`` was the newest when it did.
_TRAFFIC = """
CREATE TABLE traffic (
    version INTEGER NOT NULL, disposition TEXT NOT NULL, messages INTEGER NOT NULL,
    bytes_up INTEGER NOT NULL, bytes_down INTEGER NOT NULL, PRIMARY KEY (version, disposition))
"""

#: Evaluations that the strategy is told of: each version's first, where it is newer than those
#: before, and the version that was to be made when it was told; NULL: it has not been yet.
_HEARD = """
CREATE TABLE heard (version INTEGER PRIMARY KEY, metrics TEXT NOT NULL, told_for INTEGER)
"""

#: In order; a new one is appended, and none is ever changed.
MIGRATIONS = (_FIRST, _TIMES_AND_NORMS, _SENDERS, _TRAFFIC, _HEARD)
SCHEMA = len(MIGRATIONS)


def schema_of(db: sqlite3.Connection, file: Path) -> int:
    """How many migrations it has been through. Raises: UserError where we know fewer."""
    (schema,) = db.execute("PRAGMA user_version").fetchone()
    if schema > SCHEMA:
        raise UserError(
            f"{file} was written by a newer version of Fluffle (ledger schema {schema}; this one "
            f"knows {SCHEMA}): use that version, or a newer one"
        )
    return int(schema)


def migrate(db: sqlite3.Connection, file: Path) -> None:
    """Go through those that are missing, within the transaction that is open."""
    for migration in MIGRATIONS[schema_of(db, file) :]:
        for statement in migration.split(";"):
            db.execute(statement)
    db.execute(f"PRAGMA user_version = {SCHEMA}")
