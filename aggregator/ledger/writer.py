"""The ledger: one SQLite file that says what became of every update.

A record and what it counts are one transaction, and every transaction is conditional on the
epoch: a leader that was replaced without noticing commits nothing (``StaleLeader``). Weights are
in files beside it (``store``), and so are kept updates (``archive``), written and fsynced before
the transaction that names them. ``tables`` says what is in it, ``reading`` reads it.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fluffle.aggregator.coordinator.effects import Checkpoint, Fold, MakeVersion, SaveBuffer
from fluffle.aggregator.coordinator.stopping import score_of
from fluffle.aggregator.ledger.archive import Archive, Place
from fluffle.aggregator.ledger.arithmetic import arithmetic
from fluffle.aggregator.ledger.client_cache import PREFIX, CacheFiles
from fluffle.aggregator.ledger.privacy import new_key
from fluffle.aggregator.ledger.reader import LEDGER, LedgerReader
from fluffle.aggregator.ledger.same_run import difference_of
from fluffle.aggregator.ledger.schema import TABLES
from fluffle.aggregator.ledger.weights import Store, cannot_write, make_folder
from fluffle.aggregator.strategies.base import model_of
from fluffle.schemas import (
    Assignment,
    ClientFailed,
    Evaluation,
    Experiment,
    UserError,
    encode,
    tensors_sha256,
)

#: Transactions take milliseconds; whoever has locked the ledger for this long has stopped.
_LOCKED_S = 10.0
#: While a version is evaluated newer ones are made: so many files wait for the answer, of so many
#: versions at most.
MAY_BE_BEST, _LOOK_BACK = 8, 1000


class StaleLeader(Exception):
    """Another aggregator has started on this ledger since: stop, and commit nothing."""


class Ledger(LedgerReader):
    """One run's ledger. Not thread-safe: the aggregator's own thread uses it."""

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
        #: Epoch and status when this ledger entered the run.
        self._entered: tuple[str, str] | None = None
        self._on_locked = on_locked
        make_folder(folder)
        self.store = Store(folder, durable)
        self._durable = durable
        self._archive: Archive | None = None
        self._every_updates = 0
        self._cache = CacheFiles(self.store)
        try:
            self._db = sqlite3.connect(folder / LEDGER, isolation_level=None, timeout=_LOCKED_S)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
            with self._transaction(check=False):
                for statement in TABLES.split(";"):
                    self._db.execute(statement)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise cannot_write(folder, error) from error
            raise UserError(f"{folder / LEDGER} is no ledger: {error}") from error

    # ---- starting and resuming

    def open_run(
        self, experiment: Experiment, run_id: str, run_started: int, clock: str = "real"
    ) -> bool:
        """Enter a new run, or check that the folder holds one of this experiment and clock.

        True if there is something left to do: the run is not finished, or now stops later.
        Raises: UserError where it holds another experiment's.
        """
        document = experiment.model_dump(mode="json")
        # One transaction: of two aggregators that start at once the second finds the first's run,
        # and must not begin its epochs anew.
        with self._transaction(check=False):
            stored = self._stored_experiment()
            if stored is not None:
                self._check_same(stored, document, clock)
            self._set(experiment=json.dumps(document))
            if stored is None:
                self._set(clock=clock)
                self._set(run_id=run_id, run_started=run_started, epoch=0, status="running")
                self._set(created_at=time.time())
                if experiment.privacy is not None:
                    self._set(noise_key=new_key(experiment, clock))
            self._entered = self.meta["epoch"], self.meta["status"]
        finished = self.meta["status"] == "finished"
        return not finished or stored != document

    def _check_same(self, stored: dict[str, Any], document: dict[str, Any], clock: str) -> None:
        """Raises: UserError where the folder holds another experiment's run, or clock's."""
        difference = difference_of(stored, document)
        if difference:
            raise UserError(
                f"{self.folder} holds a run of another experiment ({difference} differs): "
                "choose another --out, or the experiment file that it was started with"
            )
        if self.meta.get("clock", clock) != clock:
            raise UserError(
                f"{self.folder} holds a run under the {self.meta['clock']} clock: choose "
                "another --out, or the same --clock"
            )

    def lead(self, newer_than: int | None = None) -> None:
        """Begin an epoch: whoever led before can commit no more. A run that had ended goes on.

        Raises: StaleLeader where another led since ``open_run``, which may have ended the run.
        ``newer_than`` is the ``run_started`` of the newest model of another run on this broker;
        ours has to be larger, or workers would take us for the past.
        """
        with self._transaction(check=False):
            meta = self.meta
            if self._entered not in (None, (meta["epoch"], meta["status"])):
                raise StaleLeader(f"epoch {meta['epoch']} has begun meanwhile")
            self.epoch = int(meta["epoch"]) + 1
            self._set(epoch=self.epoch, status="running", detail="")
            known = json.loads(self.meta.get("arithmetic", "[]"))
            if arithmetic() not in known:
                self._set(arithmetic=json.dumps([*known, arithmetic()]))
            if newer_than is not None and newer_than >= int(self.meta["run_started"]):
                self._set(run_started=newer_than + 1)
        self._entered = None
        experiment = Experiment.model_validate_json(self.meta["experiment"])
        self._every_updates = experiment.evaluation.every_updates
        if experiment.aggregation.keep_updates:
            self._archive = Archive(self.folder, self.epoch, self._durable)

    # ---- records: each is one transaction, durable when the method returns

    def load(self) -> Checkpoint:
        """Where the run stands."""
        checkpoint = super().load()
        self._cache.remember(checkpoint.state or {})
        return checkpoint

    @property
    def keeps_updates(self) -> bool:
        """Whether the run keeps its updates."""
        return self._archive is not None

    def keep_update(self, update_id: str, body: bytes) -> None:
        """Archive an update, if the run keeps them; durable with the record that names it."""
        if self._archive is not None:
            self._archive.add(update_id, body)

    def make_version(
        self, made: MakeVersion, sizes: Mapping[str, int], elapsed_s: float, keep: int
    ) -> None:
        """A version and everything that it was made of. Raises: StaleLeader, UserError."""
        kept = {k: a for k, a in made.state.items() if not k.startswith(("buffer/", PREFIX))}
        file = self.store.write("model", made.version, self.epoch, kept)
        entries = self._cache.write_new(made.state, made.version, self.epoch)
        places = self._archived()
        with self._transaction():
            self._add_folds(made.folds, sizes, places)
            self._db.execute(
                "UPDATE updates SET disposition = 'counted', version = ?"
                " WHERE disposition = 'buffered'",
                (made.version,),
            )
            self._db.execute("DELETE FROM waiting")
            updates = self.count("updates WHERE version = ?", made.version)
            self._db.execute(
                "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(made.version, self.epoch, made.closed_by, updates),
                    *(tensors_sha256(model_of(made.state)), file, time.time(), elapsed_s),
                ),
            )
            self._db.executemany("INSERT OR REPLACE INTO cache VALUES (?, ?)", entries.items())
            self._set(turn=made.turn, elapsed_s=elapsed_s, buffer_file="")
        self.store.keep(self._kept_files(keep), self.epoch)

    def save_buffer(self, saved: SaveBuffer, sizes: Mapping[str, int], elapsed_s: float) -> None:
        """A partial checkpoint of the open buffer. Raises: StaleLeader, UserError."""
        version = self.latest_version()
        sums = {k: a for k, a in saved.state.items() if k.startswith("buffer/")}
        file = self.store.write("buffer", version, self.epoch, sums) if sums else ""
        places = self._archived()
        with self._transaction():
            self._add_folds(saved.folds, sizes, places)
            self._db.executemany(
                "INSERT OR IGNORE INTO waiting VALUES (?, ?)",
                [(update.update_id, encode(update)) for update in saved.waiting],
            )
            self._set(turn=saved.turn, elapsed_s=elapsed_s, buffer_file=file)

    def record_rejection(
        self, message_sha256: str, message_id: str, reason: str, again: bool = False
    ) -> None:
        """A message of no use; ``again`` where the broker says that it has been here before."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO rejections VALUES (?, ?, ?, 1, ?)"
                " ON CONFLICT DO UPDATE SET times = times + ?",
                (message_sha256, message_id[:200], reason, time.time(), int(not again)),
            )

    def reason_rejected(self, message_id: str, message_sha256: Callable[[], str]) -> str | None:
        """Why this very message was rejected before; its hash is asked for only where needed."""
        named = "SELECT 1 FROM rejections WHERE message_id = ? LIMIT 1"
        if not self.query(named, message_id[:200]):
            return None
        same = "SELECT reason FROM rejections WHERE message_sha256 = ?"
        return next((reason for (reason,) in self.query(same, message_sha256())), None)

    def record_failure(self, failure: ClientFailed) -> None:
        """A training that failed."""
        row = (failure.update_id, failure.client, failure.worker, failure.reason, time.time())
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO failures VALUES (?, ?, ?, ?, ?)", row)

    def record_dropouts(self, assignments: Sequence[Assignment]) -> None:
        """Assignments that brought nothing in time."""
        rows = [(a.assignment_id, a.client, time.time()) for a in assignments]
        with self._transaction():
            self._db.executemany("INSERT OR IGNORE INTO dropouts VALUES (?, ?, ?)", rows)

    def record_evaluation(self, evaluation: Evaluation, elapsed_s: float) -> None:
        """The metrics of a version."""
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?, ?, ?)",
                (
                    *(evaluation.version, evaluation.worker, json.dumps(evaluation.metrics)),
                    *(evaluation.examples, evaluation.seconds, elapsed_s),
                ),
            )
            self._remember_best(evaluation)

    def record_duplicate(self) -> None:
        """A message whose update had been counted before."""
        with self._transaction():
            self._set(duplicates=int(self.meta.get("duplicates", 0)) + 1)

    def finish(
        self, status: str, detail: str, unused: Sequence[Fold], sizes: Mapping[str, int],
        elapsed_s: float,
    ) -> None:  # fmt: skip
        """The run is over; ``unused`` as ``Finish`` has them."""
        places = self._archived()
        with self._transaction():
            self._add_folds(unused, sizes, places)
            self._db.execute(
                "UPDATE updates SET disposition = 'unused' WHERE disposition = 'buffered'"
            )
            self._db.execute("DELETE FROM waiting")
            self._set(status=status, detail=detail, elapsed_s=elapsed_s, buffer_file="")

    def close(self) -> None:
        """May be called twice."""
        if self._archive is not None:
            self._archive.close()
        super().close()

    # ---- inside

    def _archived(self) -> dict[str, Place]:
        return {} if self._archive is None else self._archive.sync()

    def _add_folds(
        self, folds: Sequence[Fold], sizes: Mapping[str, int], places: Mapping[str, Place]
    ) -> None:
        position = self.count("updates WHERE disposition = 'buffered'")
        self._db.executemany(
            "INSERT INTO updates VALUES (?, 'buffered', NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    *(f.update_id, position + i, f.client, f.turn, f.base_version, f.staleness),
                    *(f.examples, f.worker, json.dumps(f.metrics), f.train_s, f.slot_s),
                    *(sizes.get(f.update_id, 0), f.received_bytes),
                )
                for i, f in enumerate(folds)
            ],
        )
        if self._archive is not None:
            self._db.executemany(
                "INSERT INTO kept VALUES (?, ?, ?, ?, ?)",
                [(f.update_id, *places[f.update_id]) for f in folds],
            )

    def _remember_best(self, evaluation: Evaluation) -> None:
        """Note the version if it is the best whose weights are still there."""
        score, best = score_of(evaluation.metrics), self.meta.get("best")
        if score is None or (best is not None and score <= json.loads(best)[2]):
            return
        rows = self.query("SELECT file FROM versions WHERE version = ?", evaluation.version)
        if rows and (self.store.folder / rows[0][0]).exists():
            self._set(best=json.dumps([evaluation.version, rows[0][0], score]))

    def _being_evaluated(self) -> list[tuple[str]]:
        """The first versions since the last evaluation that the evaluator may have taken.

        Its answer comes when newer versions have been made, and may say that one is the best.
        """
        last = self.query("SELECT MAX(version) FROM evaluations")[0][0]
        if last is None or not self._every_updates:
            return []
        return self.query(
            "SELECT file FROM (SELECT version, file, SUM(updates) OVER (ORDER BY version) AS since"
            " FROM (SELECT * FROM versions WHERE version > ? ORDER BY version LIMIT ?))"
            " WHERE since >= ? ORDER BY version LIMIT ?",
            *(last, _LOOK_BACK, self._every_updates, MAY_BE_BEST),
        )

    def _kept_files(self, keep: int) -> set[str]:
        """Those of the last versions, the best, the open buffer's, and where a replay starts."""
        rows = self.query("SELECT file FROM versions ORDER BY version DESC LIMIT ?", keep)
        rows += self._being_evaluated()
        if (best := self.best()) is not None:
            rows.append((best[1],))
        if self._archive is not None:
            rows += self.query("SELECT file FROM versions WHERE version = 0")
        buffer_file = self.meta.get("buffer_file")
        names = {name for (name,) in rows} | set(self.cache_files())
        return names | ({buffer_file} if buffer_file else set())

    def _stored_experiment(self) -> dict[str, Any] | None:
        """The run's experiment with every key that there is by now; None before a run."""
        text = self.meta.get("experiment")
        if text is None:
            return None
        try:
            return Experiment.model_validate_json(text).model_dump(mode="json")
        except ValidationError as error:
            raise UserError(
                f"{self.folder} holds a run of another version of Fluffle, whose experiment this "
                f"one does not understand: choose another --out ({error.errors()[0]['msg']})"
            ) from error

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
            raise
