"""The helper's ledger: which updates were unmasked, and in which set. SQLite, its key beside it.

A set is recorded with all its ids in one transaction, before anything of it is answered::

    new          no id is known ─────────────> recorded: from now on this set and no other
    recorded     the same set comes again ───> recorded: the same sum again, computed anew
    recorded     another set with one of its ids ─> refused, nothing changes

Neither masks nor seeds are kept: a request brings the seals of its set, which are part of what the
set is known by.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from fluffle.schemas import UserError
from fluffle.schemas.masking import Member, public_key

LEDGER, KEY = "helper.sqlite", "helper.key"
_KEY_BYTES = 32
_TABLES = """
CREATE TABLE IF NOT EXISTS sets (
    digest TEXT PRIMARY KEY, run_id TEXT NOT NULL, version INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS unmasked (
    update_id TEXT PRIMARY KEY, client TEXT NOT NULL, weight INTEGER NOT NULL,
    digest TEXT NOT NULL REFERENCES sets) STRICT;
"""


class HelperLedger:
    """One helper's key and memory, in a folder. Used by one thread at a time."""

    def __init__(self, folder: Path) -> None:
        """Raises: UserError where the folder cannot be written, or holds something else."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._private = _key(folder / KEY, known=(folder / LEDGER).exists())
            self._db = sqlite3.connect(
                folder / LEDGER, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_TABLES)
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"the helper's folder {folder} is of no use: {error}") from error

    @property
    def private(self) -> bytes:
        """The private key; it never leaves this machine."""
        return self._private

    @property
    def public(self) -> str:
        """The public key, as an experiment names it."""
        return public_key(self._private)

    def record(self, digest: str, run_id: str, version: int, members: list[Member]) -> str | None:
        """Make the set durable, or say which update is of another set. Again changes nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            other = None if self.knows(digest) else self._taken(members)
            if other is None:
                row = (digest, run_id, version)
                self._db.execute("INSERT OR IGNORE INTO sets VALUES (?, ?, ?)", row)
                self._db.executemany(
                    "INSERT OR IGNORE INTO unmasked VALUES (?, ?, ?, ?)",
                    [(m.update_id, m.client, m.weight, digest) for m in members],
                )
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        return other

    def knows(self, digest: str) -> bool:
        """Whether this very set was recorded."""
        row = self._db.execute("SELECT 1 FROM sets WHERE digest = ?", (digest,)).fetchone()
        return row is not None

    def unmasked(self) -> dict[str, str]:
        """Every update that was unmasked, with its set."""
        return dict(self._db.execute("SELECT update_id, digest FROM unmasked"))

    def close(self) -> None:
        """May be called twice."""
        self._db.close()

    def _taken(self, members: list[Member]) -> str | None:
        query = "SELECT 1 FROM unmasked WHERE update_id = ?"
        ids = (member.update_id for member in members)
        return next((i for i in ids if self._db.execute(query, (i,)).fetchone()), None)


def _key(path: Path, known: bool) -> bytes:
    """The private key of this folder, made where it is new. Raises: UserError, OSError."""
    if not path.exists():
        if known:
            raise UserError(
                f"{path} is gone: what was sealed for it is lost; start the helper in a new folder"
            )
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(os.urandom(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    private = path.read_bytes()
    if len(private) != _KEY_BYTES:
        raise UserError(f"{path} is no key: {len(private)} bytes instead of {_KEY_BYTES}")
    return private
