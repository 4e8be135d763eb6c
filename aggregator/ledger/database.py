"""The ledger's database: opened for writing, its transactions, and the fence before them.

Every transaction is conditional on the epoch: a leader that was replaced without noticing commits
nothing (``StaleLeader``).
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fluffle.aggregator.ledger.disk import cannot_write, make_folder
from fluffle.aggregator.ledger.leftovers import refuse_without_run
from fluffle.aggregator.ledger.reader import LEDGER, DamagedLedger, LedgerReader, is_damage
from fluffle.aggregator.ledger.schema import migrate, schema_of
from fluffle.aggregator.ledger.wal import examine_log
from fluffle.schemas import UserError

_log = logging.getLogger(__name__)

#: Transactions take milliseconds; whoever has locked the ledger for this long has stopped.
_LOCKED_S = 10.0


class StaleLeader(Exception):
    """Another aggregator has started on this ledger since: stop, and commit nothing."""


class Database(LedgerReader):
    """One run's database, open for writing; of the present schema."""

    def __init__(
        self, folder: Path, durable: bool = True, on_locked: Callable[[], None] | None = None
    ) -> None:
        """
        durable: False survives the end of the process, but not that of the machine.
        on_locked: is told, again and again, that another process has the ledger locked: one that
            was stopped in a transaction, say. Unless it raises, it is waited for. Default: raise.
        """
        self.folder = folder
        self.epoch = 0
        self._on_locked = on_locked
        make_folder(folder)
        if not (folder / LEDGER).exists():
            refuse_without_run(folder)
        self._refuse_damaged_log()
        try:
            self._db = sqlite3.connect(folder / LEDGER, isolation_level=None, timeout=_LOCKED_S)
            schema_of(self._db, folder / LEDGER)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
            with self._transaction(check=False):
                migrate(self._db, folder / LEDGER)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise cannot_write(folder, error) from error
            raise UserError(f"{folder / LEDGER} is no ledger: {error}") from error

    def _refuse_damaged_log(self) -> None:
        """SQLite would go back to before the damage without a word."""
        try:
            log = examine_log(self.folder / LEDGER)
        except OSError as error:
            raise UserError(f"cannot read {self.folder / LEDGER}-wal: {error.strerror}") from error
        if log.damage is not None:
            raise DamagedLedger(self.folder / LEDGER, log.damage)
        if log.torn:
            _log.warning(
                "the last record in %s was not written to its end, as when power is lost, and does "
                "not count: what it was made of comes again",
                self.folder / LEDGER,
            )

    def check_lead(self) -> None:
        """Raises: StaleLeader where another has begun an epoch since."""
        if (begun := self._begun()) != self.epoch:
            raise StaleLeader(f"epoch {begun} has begun; this was {self.epoch}")

    def _begun(self) -> int:
        """The newest epoch, whoever leads it; asked in every transaction, so without the rest."""
        row = self._db.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
        return int(row[0])

    def _set(self, **values: object) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)", [(k, str(v)) for k, v in values.items()]
        )

    def _begin_transaction(self) -> None:
        while True:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or self._on_locked is None:
                    raise
            self._on_locked()

    @contextmanager
    def _transaction(self, check: bool = True) -> Iterator[None]:
        try:
            self._begin_transaction()
            if check:
                self.check_lead()
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):
                raise cannot_write(self.folder, error) from error
            if isinstance(error, sqlite3.Error) and is_damage(error):
                raise DamagedLedger(self.folder / LEDGER, error) from error
            raise
