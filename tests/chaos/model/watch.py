"""Decides the invariants (docs/architecture.md): some when they are broken, all at the end.

It reads the ledger through a connection of its own, so it sees what is committed and no more, and
knows what workers sent and what the broker still holds.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from fluffle.aggregator.coordinator.admission import restored
from fluffle.aggregator.coordinator.selection import client_order
from fluffle.aggregator.ledger.writer import Ledger
from fluffle.aggregator.strategies.base import State, asks_of, model_of, told, update_spec
from fluffle.aggregator.strategies.registry import make_strategy
from fluffle.aggregator.verify import replay, verify
from fluffle.broker import Delivery, Envelope
from fluffle.schemas import (
    Assignment,
    ClientFailed,
    ClientUpdate,
    Evaluation,
    GlobalModel,
    Plan,
    group,
    tensors_sha256,
)
from fluffle.schemas.messages import state_name
from fluffle.schemas.tensors import model_groups
from fluffle.worker.services.client_state import ClientStates
from fluffle.worker.services.turn import verdict
from tests.chaos.model.training import initial_weights
from tests.chaos.sceptic import doubts

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
        #: Each client with state: what its last update that counts has left it with.
        self.heads: dict[str, str] = {}
        self._world = world
        self._strategy = make_strategy(world.setting.experiment)
        asks = asks_of(self._strategy)
        plan = Plan.of(world.setting.experiment, self._strategy.sends, asks)
        self._keeps_state = plan.keeps_state
        self._sent: dict[tuple[str, int, float], ClientUpdate] = {}
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
        if model.asks_for_weights:
            # A leader that stood still may ask as it was about to: of its epoch nobody hears.
            newest = (
                "SELECT 1 FROM versions, meta WHERE key = 'epoch' AND value = ?",
                str(model.run.epoch),
            )
            if self._row(*newest) is not None:
                self.violated("weights are asked for, and there are some")
            return
        row = self._row("SELECT weights_sha256 FROM versions WHERE version = ?", model.version)
        if row is None or row[0] != tensors_sha256(model_groups(model.tensors)):
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

    def state_missed(self, client: str, name: str) -> None:
        """A client's state is not where its worker looks: it starts anew."""
        if self._world.setting.states == "shared":
            self.violated(f"what client {client} goes on from ({name}) is not in the folder")

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
            cohort = self._world.setting.experiment.participation.mode == "cohort"
            for text in [*verify(ledger), *doubts(self._world.folder, cohort=cohort)]:
                self.violated(text)
            self._sent = self._all_sent()
            checks = (self._ending, self._accounting, self._sites, self._chains, self._replay)
            for check in checks:
                for text in check(ledger):
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
            if reason is not None and not self._may_be(reason, message):
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

    def _may_be(self, reason: str, message: object) -> bool:
        """Whether a message with which nothing is wrong can come to be rejected for this."""
        if not isinstance(message, ClientUpdate):
            return False
        if reason == "superseded":
            return self._keeps_state
        if reason == "repeated":
            same = "updates WHERE client = ? AND base_version >= ?"
            return message.client in self._world.setting.experiment.residents and self._has(
                same, message.client, message.base_version
            )
        if reason == "too_soon":
            participation = self._world.setting.experiment.participation
            other = "updates WHERE client = ? AND update_id != ?"
            return participation.selection == "min-separation" and self._has(
                other, message.client, message.update_id
            )
        return reason in ("late", "too_stale")

    def _sites(self, ledger: Ledger) -> Iterator[str]:
        """A resident counts once for a version, and its versions only grow."""
        counted: dict[str, int] = {}
        for client, base in ledger.query(
            "SELECT client, base_version FROM updates WHERE version > 0 ORDER BY version, position"
        ):
            if client.isdecimal():
                continue
            if base <= counted.get(client, -1):
                yield f"{client} counts for version {base} after {counted[client]}"
            counted[client] = base

    def _chains(self, ledger: Ledger) -> Iterator[str]:
        """Each update of a client with state goes on from what the one before it has left."""
        if not self._keeps_state:
            return
        for update_id, base, slot_s in ledger.query(
            "SELECT update_id, base_version, slot_s FROM updates WHERE version > 0"
            " ORDER BY version, position"
        ):
            update = self._sent.get((update_id, base, slot_s))
            if update is None:
                continue  # the replay says so
            before = self.heads.get(update.client, "")
            if update.after != before:
                yield f"{update_id} goes on from {update.after!r}, and not from {before!r}"
            self.heads[update.client] = state_name(before, update.turn, base)

    def _all_sent(self) -> dict[tuple[str, int, float], ClientUpdate]:
        messages = (envelope.message() for envelope in self._world.messages)
        return {
            (message.update_id, message.base_version, message.slot_s): message
            for message in messages
            if isinstance(message, ClientUpdate)
        }

    def _in_broker(self) -> tuple[set[bytes], set[bytes]]:
        waiting = {entry.envelope.body for entry in self._world.in_updates()}
        return waiting, {envelope.body for envelope in self._world.broker.rejected()}

    def _replay(self, ledger: Ledger) -> Iterator[str]:
        """Every version from the one before and its updates, byte for byte."""
        strategy, experiment = self._strategy, self._world.setting.experiment
        in_client_order = experiment.aggregation.deterministic
        state: State | None = None
        if self._world.setting.initial:
            state = strategy.init(initial_weights())
        for version, sha in enumerate(self.versions):
            rows = ledger.query(
                "SELECT update_id, base_version, slot_s, staleness FROM updates"
                " WHERE version = ? ORDER BY position",
                version,
            )
            updates = [(self._sent.get((u, base, slot_s)), tau) for u, base, slot_s, tau in rows]
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
                    expected = update_spec(strategy, model_of(state))
                    whole, reason = restored(update, experiment.update or (), expected)
                    if reason is not None:
                        yield f"version {version} counts what cannot be restored: {reason}"
                        return
                    state = strategy.accept(state, whole, staleness)
            if state is None or (version and not rows):
                yield f"version {version} is made of nothing"
                return
            if version:
                state = strategy.step(told(strategy, state, ledger.heard(version)))
            if tensors_sha256(model_of(state)) != sha:
                yield f"version {version} is not what its {len(rows)} updates make"
                return
        if state is not None and self._world.setting.states == "shared":
            yield from self._control_variates(state)

    def _control_variates(self, state: State) -> Iterator[str]:
        """SCAFFOLD's c is the mean of what its clients hold, who all find theirs."""
        states = ClientStates(self._world.states)
        held = {client: states.load("run", client, name) for client, name in self.heads.items()}
        for client, kept in held.items():
            if kept is None:
                yield f"what client {client} goes on from ({self.heads[client]}) is gone"
        clients = self._world.setting.experiment.task.clients
        for i, c in enumerate(group("server/control", state)):
            theirs = [kept[f"control/{i}"] for kept in held.values() if kept is not None]
            if not np.allclose(c, np.sum(theirs, axis=0) / clients, atol=1e-5):
                yield f"the server's control variate {c} is not the mean of its clients' {theirs}"
