"""Reading a ledger: what a summary, a report and ``fluffle verify`` ask. Changes nothing."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fluffle.aggregator.coordinator.effects import Checkpoint, Fold
from fluffle.aggregator.ledger.client_cache import read_entries
from fluffle.aggregator.ledger.weights import Store
from fluffle.schemas import ClientUpdate, UserError, decode
from fluffle.schemas.messages import state_name

LEDGER = "ledger.sqlite"
#: No aggregator asks so often.
_MOST_ATTEMPTS = 2**31


def standing(folder: Path) -> tuple[str, str] | None:
    """Epoch and status of the run in there; None where there is none."""
    try:
        ledger = LedgerReader(folder)
    except UserError:
        return None
    try:
        return ledger.meta["epoch"], ledger.meta["status"]
    finally:
        ledger.close()


class LedgerReader:
    """One run's ledger, read-only. Not thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Raises: UserError where there is no ledger, or none of ours."""
        if not (folder / LEDGER).is_file():
            raise UserError(f"{folder} is no run folder: there is no {LEDGER} in it")
        self.folder = folder
        self.store = Store(folder)
        try:
            self._db = _open(folder / LEDGER)
            begun = "run_id" in self.meta
        except sqlite3.DatabaseError as error:
            raise UserError(f"{folder / LEDGER} is no ledger: {error}") from error
        if not begun:
            raise UserError(f"{folder} holds no run yet: its ledger is empty")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything that is read within is of one moment, whatever a live aggregator writes."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("ROLLBACK")

    def has_moved_on(self) -> bool:
        """Whether an aggregator has recorded more than this snapshot shows: files may be gone."""
        if not self._db.in_transaction:
            return False
        db = _open(self.folder / LEDGER)
        try:
            newest = "SELECT (SELECT MAX(rowid) FROM versions), (SELECT COUNT(*) FROM updates)"
            return bool(db.execute(newest).fetchone() != self._db.execute(newest).fetchone())
        finally:
            db.close()

    @property
    def meta(self) -> dict[str, str]:
        """What is known of the run as a whole."""
        return dict(self._db.execute("SELECT key, value FROM meta"))

    def latest_version(self) -> int:
        """The newest version; -1 if there is none."""
        return int(
            self._db.execute("SELECT COALESCE(MAX(version), -1) FROM versions").fetchone()[0]
        )

    def seen(self, update_id: str) -> bool:
        """Whether this update has been recorded."""
        row = self._db.execute("SELECT 1 FROM updates WHERE update_id = ?", (update_id,))
        return row.fetchone() is not None

    def count(self, what: str, *parameters: Any) -> int:
        """How many rows: ``what`` is "table" or "table WHERE condition"."""
        return int(self._db.execute(f"SELECT COUNT(*) FROM {what}", parameters).fetchone()[0])

    def query(self, sql: str, *parameters: Any) -> list[Any]:
        """Rows of a read-only query."""
        return self._db.execute(sql, parameters).fetchall()

    def kept(self) -> tuple[int, int]:
        """How many updates are archived, and their bytes."""
        if not self.count("sqlite_master WHERE name = 'kept'"):  # a ledger from before
            return 0, 0
        ((updates, size),) = self.query("SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM kept")
        return updates, size

    def evaluations(self) -> list[tuple[int, str, int, float]]:
        """Version, metrics (JSON), examples, and when: of each version what came first."""
        return self.query(
            "SELECT version, metrics, examples, MIN(elapsed_s) FROM evaluations"
            " GROUP BY version ORDER BY version"
        )

    def best(self) -> tuple[int, str] | None:
        """The best evaluated version and its weights file, which is kept; None where there is none.

        Versions whose file was gone when their evaluation came do not count.
        """
        known = self.meta.get("best")
        if known is None:
            return None
        version, file, _ = json.loads(known)
        return version, file

    def cache_files(self) -> list[str]:
        """The files of what the strategy keeps for each client."""
        if not self.count("sqlite_master WHERE name = 'cache'"):  # a ledger from before
            return []
        return [name for (name,) in self.query("SELECT file FROM cache ORDER BY entry")]

    def load(self) -> Checkpoint:
        """Where the run stands."""
        meta = self.meta
        checkpoint = Checkpoint(
            turn=int(meta.get("turn", 0)),
            elapsed_s=float(meta.get("elapsed_s", 0)),
            evaluations=[(v, json.loads(metrics)) for v, metrics, _, _ in self.evaluations()],
        )
        row = self._db.execute(
            "SELECT version, file FROM versions ORDER BY version DESC LIMIT 1"
        ).fetchone()
        if row is None:
            return checkpoint
        checkpoint.version, file = row
        checkpoint.state = self.store.read(file) | read_entries(self.store, self.cache_files())
        if meta.get("buffer_file"):
            checkpoint.state |= self.store.read(meta["buffer_file"])
        checkpoint.updates = self.count("updates WHERE disposition = 'counted' AND version > 0")
        checkpoint.buffered = [
            Fold(*(json.loads(v) if i == 7 else v for i, v in enumerate(row)))
            for row in self._db.execute(
                "SELECT update_id, client, turn, base_version, staleness, examples, worker,"
                " metrics, train_s, slot_s, bytes_down FROM updates"
                " WHERE disposition = 'buffered' ORDER BY position"
            )
        ]
        for (body,) in self._db.execute("SELECT body FROM waiting ORDER BY rowid"):
            update = decode(body)
            assert isinstance(update, ClientUpdate)
            checkpoint.waiting.append(update)
        checkpoint.residents = dict(
            self._db.execute(
                "SELECT client, MAX(base_version) FROM updates"
                " WHERE client GLOB '*[^0-9]*' AND disposition != 'unused' GROUP BY client"
            )
        )
        # A resident's turn is its attempt, counted from 1; it may claim one that nobody asked for.
        ((checkpoint.attempt,),) = self.query(
            "SELECT COALESCE(MAX(turn), 0) FROM updates WHERE client GLOB '*[^0-9]*'"
            " AND disposition = 'unused' AND base_version = ? AND turn < ?",
            checkpoint.version,
            _MOST_ATTEMPTS,
        )
        return checkpoint

    def client_states(self) -> dict[str, str]:
        """What each client was left with by its updates that are counted or in the open buffer."""
        names: dict[str, str] = {}
        for client, turn, base_version in self._db.execute(
            "SELECT client, turn, base_version FROM updates"
            " WHERE turn > 0 AND disposition IN ('counted', 'buffered')"
            " ORDER BY version IS NULL, version, position"
        ):
            names[client] = state_name(names.get(client, ""), turn, base_version)
        return names

    def close(self) -> None:
        """May be called twice."""
        self._db.close()


def _open(file: Path) -> sqlite3.Connection:
    """A connection that cannot write, on a read-only disk as well."""
    where = file.absolute().as_uri()
    db = sqlite3.connect(f"{where}?mode=ro", uri=True, isolation_level=None, timeout=30)
    try:
        db.execute("SELECT 1 FROM sqlite_master")
    except sqlite3.OperationalError:
        if file.with_name(f"{LEDGER}-wal").exists():
            raise
        # Even to read, SQLite wants to make a file beside this one; nobody writes it here.
        db = sqlite3.connect(f"{where}?immutable=1", uri=True, isolation_level=None)
    return db
