"""The ledger: one SQLite file that says what became of every update.

A record and what it counts are one transaction. Weights are in files beside it (``weights``), and
so are kept updates (``archive``), written and fsynced before the transaction that names them.
``schema`` says what is in it, ``reader`` reads it, ``database`` has the transactions.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fluffle.aggregator.coordinator.effects import Checkpoint, Fold, MakeVersion, SaveBuffer
from fluffle.aggregator.ledger.archive import Archive, Place
from fluffle.aggregator.ledger.client_cache import PREFIX, CacheFiles
from fluffle.aggregator.ledger.database import StaleLeader
from fluffle.aggregator.ledger.folds import insert_folds
from fluffle.aggregator.ledger.retention import needed_files, new_best
from fluffle.aggregator.ledger.run_entry import RunEntry
from fluffle.aggregator.ledger.sums import Traffic
from fluffle.aggregator.ledger.weights import Store
from fluffle.aggregator.strategies.base import model_of
from fluffle.schemas import Assignment, ClientFailed, Evaluation, Experiment, encode, tensors_sha256

__all__ = ["Ledger", "StaleLeader"]

#: Messages that are remembered one by one for each reason and sender; what comes on top is only
#: counted. By sender: nobody's noise makes us forget what others sent too late.
MOST_REJECTIONS = 10_000
#: Failures of a sender that one leader remembers one by one, those that were asked for and those
#: that were not; then a client's are added to its last row.
MOST_ASKED, MOST_UNASKED = 10_000, 1000
#: Evaluators of one version.
MOST_EVALUATORS = 8


class Ledger(RunEntry):
    """One run's ledger. Not thread-safe: the aggregator's own thread uses it."""

    def __init__(
        self, folder: Path, durable: bool = True, on_locked: Callable[[], None] | None = None
    ) -> None:
        """As ``Database``."""
        super().__init__(folder, durable, on_locked)
        self.store = Store(folder, durable)
        self._durable = durable
        self._archive: Archive | None = None
        self._every_updates = 0
        #: Rows of rejections by reason and sender; None until they have been counted.
        self._rejections: Counter[tuple[str, str]] | None = None
        #: Rows of failures that this leader has recorded, by sender and whether it was asked.
        self._failures: Counter[tuple[str, bool]] = Counter()
        self._cache = CacheFiles(self.store)

    def lead(self, newer_than: int | None = None, epoch_above: int = 0) -> None:
        """As ``RunEntry``; from now on records are made."""
        super().lead(newer_than, epoch_above)
        experiment = Experiment.stored(self.meta["experiment"])
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
            self._db.executemany(
                "UPDATE heard SET told_for = ? WHERE version = ?",
                [(made.version, version) for version in made.heard],
            )
            self._db.executemany("INSERT OR REPLACE INTO cache VALUES (?, ?)", entries.items())
            self._set(turn=made.turn, elapsed_s=elapsed_s, buffer_file="")
        needed = needed_files(self, keep, self._every_updates, self.keeps_updates)
        self.store.keep(needed, self.epoch)

    def save_buffer(self, saved: SaveBuffer, sizes: Mapping[str, int], elapsed_s: float) -> None:
        """A partial checkpoint of the open buffer. Raises: StaleLeader, UserError."""
        version, superseded = self.latest_version(), self.meta.get("buffer_file")
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
        if superseded and superseded != file:
            self.store.discard(superseded)

    def record_rejection(
        self,
        message_sha256: str,
        message_id: str,
        reason: str,
        again: bool = False,
        sender: str = "",
        traffic: Traffic | None = None,
    ) -> None:
        """A message of no use.

        again: the broker says that it has been here before.
        sender: whom the broker vouches for; empty where it does not.
        traffic: what it cost; counted once, however often it is delivered.
        """
        known = "SELECT 1 FROM rejections WHERE message_sha256 = ?"
        with self._transaction():
            if not self.query(known, message_sha256):
                if self._rejections is None:
                    grouped = "SELECT reason, sender, COUNT(*) FROM rejections GROUP BY 1, 2"
                    rows = self.query(grouped)
                    self._rejections = Counter({(why, who): count for why, who, count in rows})
                if self._rejections[reason, sender] >= MOST_REJECTIONS:
                    message_sha256, message_id = f"more:{reason}:{sender}", ""
                else:
                    self._rejections[reason, sender] += 1
            self._db.execute(
                "INSERT INTO rejections (message_sha256, message_id, reason, times, at, sender)"
                " VALUES (?, ?, ?, 1, ?, ?) ON CONFLICT DO UPDATE SET times = times + ?",
                (message_sha256, message_id[:200], reason, time.time(), sender, int(not again)),
            )
            if traffic is not None and not again:
                self._add_traffic(reason, traffic)

    def reason_rejected(self, message_id: str, message_sha256: Callable[[], str]) -> str | None:
        """Why this very message was rejected before; its hash is asked for only where needed."""
        named = "SELECT 1 FROM rejections WHERE message_id = ? LIMIT 1"
        if not self.query(named, message_id[:200]):
            return None
        same = "SELECT reason FROM rejections WHERE message_sha256 = ?"
        return next((reason for (reason,) in self.query(same, message_sha256())), None)

    def record_failure(
        self, failure: ClientFailed, asked: bool = True, again: bool = False, sender: str = ""
    ) -> None:
        """A training that failed; only counted beyond ``MOST_ASKED`` or ``MOST_UNASKED``.

        again, sender: as for ``record_rejection``.
        """
        row = (failure.update_id, failure.client, failure.worker, failure.reason, time.time())
        known = "SELECT 1 FROM failures WHERE assignment_id = ?"
        last = "SELECT MAX(rowid) FROM failures WHERE client = ?"
        with self._transaction():
            if self.query(known, failure.update_id):
                return
            ((before,),) = self.query(last, failure.client)
            most = MOST_ASKED if asked else MOST_UNASKED
            if before is None or self._failures[sender, asked] < most:
                self._failures[sender, asked] += 1
                self._db.execute(
                    "INSERT INTO failures (assignment_id, client, worker, reason, at)"
                    " VALUES (?, ?, ?, ?, ?)",
                    row,
                )
            else:
                more = "UPDATE failures SET times = times + ? WHERE rowid = ?"
                self._db.execute(more, (int(not again), before))

    def record_dropouts(self, assignments: Sequence[Assignment]) -> None:
        """Assignments that brought nothing in time."""
        rows = [(a.assignment_id, a.client, time.time()) for a in assignments]
        with self._transaction():
            self._db.executemany("INSERT OR IGNORE INTO dropouts VALUES (?, ?, ?)", rows)

    def takes_evaluation(self, version: int, worker: str) -> bool:
        """Whether this one may still measure the version: anybody may claim any name."""
        others = "evaluations WHERE version = ? AND worker != ?"
        return self.count(others, version, worker) < MOST_EVALUATORS

    def record_evaluation(
        self, evaluation: Evaluation, elapsed_s: float, heard: bool = False
    ) -> None:
        """The metrics of a version; ``heard`` where the strategy will be told of them."""
        with self._transaction():
            if heard:
                self._db.execute(
                    "INSERT INTO heard VALUES (?, ?, NULL)",
                    (evaluation.version, json.dumps(evaluation.metrics)),
                )
            self._db.execute(
                "INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?, ?, ?)",
                (
                    *(evaluation.version, evaluation.worker, json.dumps(evaluation.metrics)),
                    *(evaluation.examples, evaluation.seconds, elapsed_s),
                ),
            )
            if (best := new_best(self, evaluation)) is not None:
                self._set(best=best)

    def record_duplicate(self, traffic: Traffic | None = None) -> None:
        """A message whose update had been counted before; ``traffic`` where it was sent again."""
        with self._transaction():
            self._set(duplicates=int(self.meta.get("duplicates", 0)) + 1)
            if traffic is not None:
                self._add_traffic("duplicate", traffic)

    def record_lost(self, where: str, traffic: Traffic) -> None:
        """A turn of a simulated device that has brought no update, and what travelled for it."""
        with self._transaction():
            self._add_traffic(where, traffic)

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

    def _add_traffic(self, disposition: str, more: Traffic) -> None:
        self._db.execute(
            "INSERT INTO traffic VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " messages = messages + excluded.messages, bytes_up = bytes_up + excluded.bytes_up,"
            " bytes_down = bytes_down + excluded.bytes_down",
            (self.latest_version(), disposition, more.messages, more.bytes_up, more.bytes_down),
        )

    def _archived(self) -> dict[str, Place]:
        return {} if self._archive is None else self._archive.sync()

    def _add_folds(
        self, folds: Sequence[Fold], sizes: Mapping[str, int], places: Mapping[str, Place]
    ) -> None:
        position = self.count("updates WHERE disposition = 'buffered'")
        insert_folds(self._db, folds, position, sizes)
        if self._archive is not None:
            self._db.executemany(
                "INSERT INTO kept VALUES (?, ?, ?, ?, ?)",
                [(f.update_id, *places[f.update_id]) for f in folds],
            )
