"""The reader of a ledger, for summaries, reports and ``fluffle verify``. Changes nothing."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fluffle.aggregator.coordinator.effects import Checkpoint, Fold
from fluffle.aggregator.coordinator.norms import VERSIONS
from fluffle.aggregator.ledger.client_cache import read_entries
from fluffle.aggregator.ledger.folds import buffered_folds, counted_folds, version_folds
from fluffle.aggregator.ledger.schema import SCHEMA, migrate, schema_of
from fluffle.aggregator.ledger.wal import examine_log
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
        meta = ledger.meta
        return meta.get("epoch", ""), meta.get("status", "")
    except sqlite3.DatabaseError:
        return None  # whoever enters the run says what is wrong
    finally:
        ledger.close()


class DamagedLedger(UserError):
    """SQLite cannot read its own file any more."""

    def __init__(self, file: Path, error: Exception | str) -> None:
        super().__init__(
            f"{file} is damaged ({error}): restore a copy of the run folder, or choose another "
            "--out; fluffle verify says what is wrong"
        )


class LedgerReader:
    """One run's ledger, read-only. Not thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Raises: UserError where there is no ledger, or none of ours."""
        if not (folder / LEDGER).is_file():
            raise UserError(f"{folder} is no run folder: there is no {LEDGER} in it")
        self.folder = folder
        self.store = Store(folder)
        try:
            self._db = _migrated(_open(folder / LEDGER), folder / LEDGER)
            begun = self._db.execute("SELECT 1 FROM meta WHERE key = 'run_id'").fetchone()
        except sqlite3.DatabaseError as error:
            raise UserError(f"{folder / LEDGER} is no ledger: {error}") from error
        if not begun:
            if (damage := examine_log(folder / LEDGER).damage) is not None:
                raise DamagedLedger(folder / LEDGER, damage)
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
        return dict(self.query("SELECT key, value FROM meta"))

    def latest_version(self) -> int:
        """The newest version; -1 if there is none."""
        return int(self.query("SELECT COALESCE(MAX(version), -1) FROM versions")[0][0])

    def seen(self, update_id: str) -> bool:
        """Whether this update has been recorded."""
        return bool(self.query("SELECT 1 FROM updates WHERE update_id = ?", update_id))

    def count(self, what: str, *parameters: Any) -> int:
        """How many rows: ``what`` is "table" or "table WHERE condition"."""
        return int(self.query(f"SELECT COUNT(*) FROM {what}", *parameters)[0][0])

    def query(self, sql: str, *parameters: Any) -> list[Any]:
        """Rows of a read-only query. Raises: DamagedLedger."""
        try:
            return self._db.execute(sql, parameters).fetchall()
        except sqlite3.DatabaseError as error:
            if is_damage(error):
                raise DamagedLedger(self.folder / LEDGER, error) from error
            raise

    def kept(self) -> tuple[int, int]:
        """How many updates are archived, and their bytes."""
        ((updates, size),) = self.query("SELECT COUNT(*), TOTAL(bytes) FROM kept")
        return updates, int(size)

    def evaluations(self) -> list[tuple[int, str, int, float]]:
        """Version, metrics (JSON), examples, and when: of each version what came first."""
        return self.query(
            "SELECT version, metrics, examples, MIN(elapsed_s) FROM evaluations"
            " GROUP BY version ORDER BY version"
        )

    def heard(self, told_for: int | None) -> list[tuple[int, dict[str, float]]]:
        """Versions and metrics that the strategy was told of when this version was to be made;
        None: that it has not been told of yet.
        """
        rows = self.query(
            "SELECT version, metrics FROM heard WHERE told_for IS ? ORDER BY version", told_for
        )
        return [(version, json.loads(metrics)) for version, metrics in rows]

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
        return [name for (name,) in self.query("SELECT file FROM cache ORDER BY entry")]

    def load(self) -> Checkpoint:
        """Where the run stands."""
        meta = self.meta
        checkpoint = Checkpoint(
            turn=int(meta.get("turn", 0)),
            elapsed_s=float(meta.get("elapsed_s", 0)),
            unheard=self.heard(None),
            heard=int(self.query("SELECT COALESCE(MAX(version), -1) FROM heard")[0][0]),
            evaluations=[(v, json.loads(metrics)) for v, metrics, _, _ in self.evaluations()],
        )
        rows = self.query("SELECT version, file FROM versions ORDER BY version DESC LIMIT 1")
        if not rows:
            return checkpoint
        ((checkpoint.version, file),) = rows
        checkpoint.state = self.store.read(file) | read_entries(self.store, self.cache_files())
        if meta.get("buffer_file"):
            checkpoint.state |= self.store.read(meta["buffer_file"])
        checkpoint.updates = self.count("updates WHERE disposition = 'counted' AND version > 0")
        checkpoint.buffered = buffered_folds(self._db)
        checkpoint.recent = counted_folds(self._db, max(1, checkpoint.version - VERSIONS + 1))
        for (body,) in self.query("SELECT body FROM waiting ORDER BY rowid"):
            update = decode(body)
            assert isinstance(update, ClientUpdate)
            checkpoint.waiting.append(update)
        checkpoint.residents = dict(
            self.query(
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

    def history(self) -> Iterator[tuple[int, list[Fold]]]:
        """Every version with what it counts, in order; one in memory at a time."""
        for version in range(1, self.latest_version() + 1):
            yield version, version_folds(self._db, version)

    def client_states(self) -> dict[str, str]:
        """What each client was left with by its updates that are counted or in the open buffer."""
        names: dict[str, str] = {}
        for client, turn, base_version in self.query(
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


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file or its disk is to blame; most subclasses tell of mistakes of ours."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR)


def _migrated(db: sqlite3.Connection, file: Path) -> sqlite3.Connection:
    """The database, or of an earlier schema a copy in memory that has the present one."""
    if schema_of(db, file) == SCHEMA:
        return db
    copy = sqlite3.connect(":memory:", isolation_level=None)
    db.backup(copy)
    db.close()
    copy.execute("BEGIN")
    migrate(copy, file)
    copy.execute("COMMIT")
    return copy
