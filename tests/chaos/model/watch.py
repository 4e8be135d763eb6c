"""Decides the invariants of DESIGN section 6: some at the moment they are broken, all at the end.

It reads the ledger through a connection of its own, so it sees what is committed and no more, and
knows what workers sent and what the broker still holds.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING

from aggregator.ledger import Ledger
from aggregator.selection import client_order
from aggregator.strategies import make_strategy, model_of
from aggregator.verify import replay, verify
from broker import Delivery, Envelope
from schemas import (
    Assignment,
    ClientFailed,
    ClientUpdate,
    Evaluation,
    GlobalModel,
    tensors_sha256,
)
from worker.turn import verdict

if TYPE_CHECKING:
    from tests.chaos.model.world import World


class Watch:
    """What was wrong with one schedule."""

    def __init__(self, world: World) -> None:
        self.violations: list[str] = []
        #: What each version's weights were: filled in at the end.
        self.versions: list[str] = []
        #: Turns that were lost to a deadline, or failed.
        self.turns_lost = 0
        self._world = world
        self._reader: sqlite3.Connection | None = None

    def violated(self, text: str) -> None:
        """An invariant does not hold."""
        self.violations.append(text)
        self._world.note(f"VIOLATION {text}")

    def close(self) -> None:
        """Let go of the ledger."""
        if self._reader is not None:
            self._reader.close()

    # ---- at the moment

    def committed(self, ledger: Ledger) -> None:
        """A transaction is durable: its leader began last, and what is recorded is there."""
        row = self._row(
            "SELECT (SELECT value FROM meta WHERE key = 'epoch'),"
            " (SELECT COUNT(*) FROM updates WHERE disposition = 'buffered'),"
            " (SELECT COUNT(*) FROM waiting), (SELECT value FROM meta WHERE key = 'buffer_file')"
        )
        assert row is not None
        epoch, buffered, waiting, sums = row
        if ledger.epoch and str(ledger.epoch) != epoch:
            self.violated(f"the leader of epoch {ledger.epoch} commits in epoch {epoch}")
        in_client_order = self._world.setting.experiment.aggregation.deterministic
        if buffered and (waiting != buffered if in_client_order else not sums):
            self.violated(f"{buffered} updates are recorded as folded, and what they gave is not")

    def published(self, envelope: Envelope) -> None:
        """A version is about to be seen: it has to be durable, and count what it was made of."""
        model = envelope.message()
        assert isinstance(model, GlobalModel)
        row = self._row("SELECT weights_sha256 FROM versions WHERE version = ?", model.version)
        if row is None or row[0] != tensors_sha256(model.tensors):
            self.violated(f"version {model.version} is published and not durable")
        counted = self._row(
            "SELECT COUNT(*) FROM updates WHERE disposition = 'counted'"
            " AND version BETWEEN 1 AND ?",
            model.version,
        )
        if counted != (model.updates,):
            self.violated(f"version {model.version} says {model.updates} updates, not {counted}")

    def acked(self, delivery: Delivery) -> None:
        """The aggregator lets the broker forget a message: it has to be recorded."""
        if not self._recorded(delivery.envelope):
            self.violated(f"{delivery.envelope.message_id} is acked and not recorded")

    def turn_acked(self, delivery: Delivery, answered: set[str], newest: Envelope | None) -> None:
        """A worker lets the broker forget a turn: answered and confirmed, or for nobody."""
        turn = delivery.envelope.message()
        assert isinstance(turn, Assignment)
        model = newest.message() if newest is not None else None
        assert model is None or isinstance(model, GlobalModel)
        if turn.assignment_id not in answered and verdict(turn, model) != "drop":
            self.violated(f"turn {turn.assignment_id} is acked before its answer is confirmed")

    def _recorded(self, envelope: Envelope) -> bool:
        if envelope.content == b"":  # held, and only its name is left
            return self._has("updates WHERE update_id = ?", envelope.message_id)
        if self._rejected(envelope):
            return True
        message = envelope.message()
        if isinstance(message, Evaluation):
            return self._has("evaluations WHERE version = ?", message.version)
        if isinstance(message, ClientFailed):
            return self._has("failures WHERE assignment_id = ?", message.update_id)
        return self._has("updates WHERE update_id = ?", envelope.message_id)

    def _rejected(self, envelope: Envelope) -> bool:
        digest = hashlib.sha256(envelope.body).hexdigest()
        return self._has("rejections WHERE message_sha256 = ?", digest)

    def _has(self, what: str, *parameters: object) -> bool:
        return self._row(f"SELECT 1 FROM {what}", *parameters) is not None

    def _row(self, sql: str, *parameters: object) -> tuple[object, ...] | None:
        if self._reader is None:
            self._reader = sqlite3.connect(
                self._world.folder / "ledger.sqlite", isolation_level=None
            )
        row: tuple[object, ...] | None = self._reader.execute(sql, parameters).fetchone()
        return row

    # ---- at the end

    def over(self) -> None:
        """The run is over, or stopped at a violation: read everything."""
        if self.violations:
            return
        ledger = Ledger(self._world.folder, durable=False)
        try:
            self.turns_lost = ledger.count("dropouts") + ledger.count("failures")
            self.versions = [
                sha
                for (sha,) in ledger.query("SELECT weights_sha256 FROM versions ORDER BY version")
            ]
            for text in verify(ledger):
                self.violated(text)
            for text in (*self._ending(ledger), *self._accounting(ledger), *self._replay(ledger)):
                self.violated(text)
            if self._world.setting.experiment.aggregation.keep_updates:
                problem = replay(ledger).problem
                if problem is not None:
                    self.violated(problem)
        finally:
            ledger.close()

    def _ending(self, ledger: Ledger) -> Iterator[str]:
        experiment, outcome = self._world.setting.experiment, self._world.outcome
        allowed = {"finished"}
        if experiment.aggregation.on_deadline == "abort":
            allowed.add("aborted")
        if self._world.setting.failing:
            allowed.add("failed")
        if outcome not in allowed or ledger.meta["status"] != outcome:
            yield f"the run ended as {outcome}, the ledger says {ledger.meta['status']}"
        wanted = experiment.experiment.versions
        early = experiment.experiment.target_accuracy is not None
        if outcome == "finished" and not early and ledger.latest_version() != wanted:
            yield f"the run finished at version {ledger.latest_version()}, not {wanted}"

    def _accounting(self, ledger: Ledger) -> Iterator[str]:
        """Every message that came into the broker has exactly one disposition."""
        waiting, dead = self._in_broker()
        rejected = dict(ledger.query("SELECT message_sha256, reason FROM rejections"))
        folded = set(ledger.query("SELECT update_id, base_version, worker, slot_s FROM updates"))
        known = set(folded)
        for body, envelope in {sent.body: sent for sent in self._world.messages}.items():
            message = envelope.message()
            reason = rejected.get(hashlib.sha256(body).hexdigest())
            if reason not in (None, "late", "too_stale"):
                yield f"{message.message_id} is rejected ({reason}), and nothing is wrong with it"
            somewhere = body in waiting or body in dead or reason is not None
            if not somewhere and not self._recorded(envelope):
                yield f"{message.message_id} of {message.run} is nowhere"
            if isinstance(message, ClientUpdate):
                key = (message.update_id, message.base_version, message.worker, message.slot_s)
                known.discard(key)
                if key in folded and reason is not None:
                    yield f"{message.message_id} is both counted and rejected ({reason})"
        for update_id, *_ in known:
            yield f"{update_id} is in the ledger, and nobody sent it like that"

    def _in_broker(self) -> tuple[set[bytes], set[bytes]]:
        waiting = {entry.envelope.body for entry in self._world.in_updates()}
        return waiting, {envelope.body for envelope in self._world.broker.rejected()}

    def _replay(self, ledger: Ledger) -> Iterator[str]:
        """Every version from the one before and its updates, byte for byte."""
        sent: dict[tuple[str, int, float], ClientUpdate] = {}
        for envelope in self._world.messages:
            message = envelope.message()
            if isinstance(message, ClientUpdate):
                sent[message.update_id, message.base_version, message.slot_s] = message
        strategy = make_strategy(self._world.setting.experiment)
        in_client_order = self._world.setting.experiment.aggregation.deterministic
        state = None
        for version, sha in enumerate(self.versions):
            rows = ledger.query(
                "SELECT update_id, base_version, slot_s, staleness FROM updates"
                " WHERE version = ? ORDER BY position",
                version,
            )
            updates = [(sent.get((u, base, slot_s)), tau) for u, base, slot_s, tau in rows]
            if any(update is None for update, _ in updates):
                yield f"version {version} counts what nobody sent"
                return
            if in_client_order:
                updates.sort(key=lambda entry: client_order(entry[0].client))  # type: ignore[union-attr]
            for update, staleness in updates:
                assert update is not None
                if state is None:
                    state = strategy.init({k: a.copy() for k, a in update.tensors.items()})
                else:
                    state = strategy.accept(state, update, staleness)
            if state is None or (version and not rows):
                yield f"version {version} is made of nothing"
                return
            if version:
                state = strategy.step(state)
            if tensors_sha256(model_of(state)) != sha:
                yield f"version {version} is not what its {len(rows)} updates make"
                return
