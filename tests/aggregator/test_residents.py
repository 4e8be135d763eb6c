"""Resident clients at the aggregator: no turns, one contribution to each (version, attempt), and
nobody who is not who they say they are."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluffle.aggregator.coordinator.coordinator import ASK_AGAIN
from fluffle.aggregator.coordinator.effects import (
    Assign,
    Duplicate,
    Finish,
    Hold,
    MakeVersion,
    Publish,
    RecordDropouts,
    RecordFailure,
    Reject,
)
from fluffle.aggregator.ledger.summary import summarise
from fluffle.aggregator.ledger.writer import Ledger
from fluffle.aggregator.service import AggregatorService
from fluffle.aggregator.verify import verify
from fluffle.broker import Closed, Envelope
from fluffle.broker.embedded import EmbeddedBroker
from fluffle.schemas import (
    ClientFailed,
    ClientUpdate,
    Evaluation,
    Experiment,
    GlobalModel,
    Message,
    decode,
)
from fluffle.schemas.messages import assignment_id, order, resident_update_id
from tests.aggregator.scripted import Federation
from tests.aggregator.test_coordinator import RUN, Driver, none, only, weights

SITES = ("hospital-7", "clinic-2", "lab-3")


class Sites(Driver):
    """A run of three residents, and no pooled clients unless told."""

    def __init__(self, **tables: Any) -> None:
        tables.setdefault("task", {"clients": 0})
        tables.setdefault("participation", {"residents": list(SITES)})
        super().__init__(**tables)

    def send(self, client: str, attempt: int = 0, **changes: Any) -> list[Any]:
        base = changes.pop("base_version", self.coordinator.version)
        seen_in = changes.pop("seen_in", None)
        client = changes.pop("says", client)
        fields: dict[str, Any] = {
            "run": RUN,
            "update_id": resident_update_id("run", client, base, attempt),
            "client": client,
            "turn": attempt + 1,
            "base_version": base,
            "worker": client,
            "sends": "delta",
            "examples": 10,
            "tensors": weights(1.0),
        }
        return self.give(ClientUpdate(**{**fields, **changes}), seen_in)


# ---- turns and versions


def test_a_quorum_of_residents_makes_a_version_without_a_single_assignment() -> None:
    # Given a run of residents alone
    sites = Sites(aggregation={"quorum": 2})
    # When two of them have trained
    sites.send("hospital-7")
    effects = sites.send("lab-3")
    # Then there is a version, which is published, and nobody was given a turn
    assert [fold.client for fold in only(MakeVersion, effects).folds] == ["hospital-7", "lab-3"]
    assert only(Publish, effects).model.version == 1
    assert none(Assign, sites.log)


def test_one_resident_alone_makes_progress_at_the_deadline() -> None:
    sites = Sites(aggregation={"quorum": 3, "deadline_s": 10})
    for version in range(1, 4):
        sites.send("clinic-2")
        assert only(MakeVersion, sites.wait(10)).version == version


def test_a_resident_opens_and_closes_no_turn_of_pooled_clients() -> None:
    # Given five pooled clients in flight beside the residents
    sites = Sites(task={"clients": 5}, aggregation={"quorum": 4})
    before = dict(sites.coordinator.turns.open)
    assert len(before) == 5
    # When a resident contributes
    effects = sites.send("hospital-7")
    # Then their turns are as they were, and both kinds fill one buffer
    assert none(Assign, effects)
    assert sites.coordinator.turns.open == before
    for _ in range(2):
        sites.give()
    assert only(MakeVersion, sites.give()).closed_by == "quorum"


def test_a_contribution_to_a_version_and_attempt_counts_once() -> None:
    sites = Sites(aggregation={"quorum": 3})
    only(Hold, sites.send("hospital-7"))
    only(Hold, sites.send("hospital-7", seen_in="buffer"))
    only(Duplicate, sites.send("hospital-7", seen_in="ledger"))
    assert sites.coordinator.buffer.size == 1


def test_a_deadline_without_any_update_asks_for_another_attempt() -> None:
    # Given that nothing has come
    sites = Sites(aggregation={"quorum": 2, "deadline_s": 10})
    # When the deadline passes
    model = only(Publish, sites.wait(10)).model
    # Then the model is published with the next attempt, and an update for it counts
    assert (model.version, model.attempt) == (0, 1)
    only(Hold, sites.send("hospital-7", attempt=1))


def test_who_is_in_the_buffer_is_not_asked_to_train_for_it_again() -> None:
    # Given one update where a deadline needs two
    sites = Sites(aggregation={"quorum": 3, "deadline_s": 10, "min_updates": 2})
    sites.send("hospital-7")
    # When the deadline passes
    model = only(Publish, sites.wait(10)).model
    # Then whoever lost the model gets it, and for who has it nothing is new
    assert (model.version, model.attempt) == (0, 0)


def test_a_site_whose_training_failed_is_asked_again_though_others_have_answered() -> None:
    # Given a version that waits for all three, of whom one could not train
    sites = Sites(aggregation={"quorum": 3, "deadline_s": 10, "on_deadline": "extend"})
    sites.send("clinic-2")
    sites.send("lab-3")
    fields = {"run": RUN, "turn": 1, "base_version": 0, "worker": "w", "reason": "MemoryError"}
    sites.give(ClientFailed(update_id="run:hospital-7:v0.0", client="hospital-7", **fields))
    # When deadlines pass, then the model comes with another attempt, once
    assert [only(Publish, sites.wait(10)).model.attempt for _ in range(2)] == [1, 1]
    # And the one who failed closes the version, which the others cannot
    assert only(Reject, sites.send("lab-3", attempt=1)).reason == "repeated"
    assert only(MakeVersion, sites.send("hospital-7", attempt=1)).version == 1


def test_whose_update_is_lost_for_good_is_asked_again_after_some_deadlines() -> None:
    # Given that an update of two was dead-lettered: nothing says so
    sites = Sites(aggregation={"quorum": 2, "deadline_s": 10, "min_updates": 2})
    sites.send("clinic-2")
    # When deadlines pass, then the site is asked again, more and more seldom
    effects = [effect for _ in range(4 * ASK_AGAIN) for effect in sites.wait(10)]
    attempts = [effect.model.attempt for effect in effects if isinstance(effect, Publish)]
    assert attempts == [0, 0, 0, 1, 2, 3]
    assert only(MakeVersion, sites.send("lab-3", attempt=3)).version == 1


def test_a_site_cannot_fill_a_buffer_alone_by_claiming_attempts() -> None:
    # Given a version that wants three updates
    sites = Sites(aggregation={"quorum": 3})
    only(Hold, sites.send("hospital-7"))
    # When a site that counts already says that it answers other attempts
    reasons = [only(Reject, sites.send("hospital-7", attempt)).reason for attempt in (1, 2, 2**52)]
    # Then they are rejected, and others fill the buffer
    assert reasons == ["repeated"] * 3
    sites.send("clinic-2")
    assert only(MakeVersion, sites.send("lab-3")).closed_by == "quorum"
    assert only(Reject, sites.send("lab-3", 1, base_version=0)).reason == "repeated"
    only(Hold, sites.send("lab-3"))


def test_a_site_cannot_make_version_0() -> None:
    sites = Sites(initial=False)
    for turn, identity in ((5, "run:5:hospital-7"), (1, "run:hospital-7:v0.0"), (0, "run:1:0")):
        effects = sites.send(
            "hospital-7", update_id=identity, turn=turn, sends="initial", base_version=0
        )
        assert only(Reject, effects).reason == "forged"
    assert sites.coordinator.phase == "initialising"


def test_a_stale_update_of_a_resident_is_welcome_up_to_max_staleness() -> None:
    sites = Sites(aggregation={"quorum": 1, "max_staleness": 1})
    for _ in range(2):
        sites.send("hospital-7")
    effects = sites.send("lab-3", base_version=1)
    assert only(MakeVersion, effects).folds[0].staleness == 1
    assert only(Reject, sites.send("lab-3", base_version=1)).reason == "too_stale"


# ---- version 0 without workers


def test_the_evaluator_is_asked_for_weights_by_a_model_that_has_none() -> None:
    # Given a run of residents alone, without weights
    sites = Sites(initial=False)
    asked = only(Publish, sites.log).model
    assert asked.asks_for_weights
    assert none(Assign, sites.log)
    # When the evaluator sends them
    effects = sites.give(
        ClientUpdate(
            **{"run": RUN, "update_id": assignment_id("run", 0, "0"), "client": "0", "turn": 0},
            **{"base_version": 0, "worker": "evaluator", "sends": "initial", "examples": 0},
            tensors=weights(),
        )
    )
    # Then version 0 is made, and newer than what asked for it
    assert only(MakeVersion, effects).version == 0
    model = only(Publish, effects).model
    assert not model.asks_for_weights
    assert order(model.headers()) > order(asked.headers())


def test_an_evaluator_that_is_not_there_is_asked_again_and_one_that_fails_ends_the_run() -> None:
    participation = {"residents": list(SITES), "assignment_deadline_s": 5}
    sites = Sites(initial=False, participation=participation)
    first = only(Publish, sites.log).model
    effects = sites.wait(5)
    assert len(only(RecordDropouts, effects).assignments) == 1
    assert order(only(Publish, effects).model.headers()) > order(first.headers())
    failed = ClientFailed(
        **{"run": RUN, "update_id": "run:0:0", "client": "0", "turn": 0, "base_version": 0},
        **{"worker": "evaluator", "reason": "no such task"},
    )
    for _ in range(2):
        only(Publish, sites.give(failed))
    assert "no such task" in only(Finish, sites.give(failed)).detail


# ---- who they are


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"says": "clinic-9"}, "not_allowed"),
        ({"says": "0", "update_id": "run:1:0"}, "forged"),
        ({"update_id": "run:lab-3:v0.0"}, "forged"),
        ({"update_id": "run:hospital-7:v0.1"}, "forged"),
        ({"update_id": "run:hospital-7:v1.0"}, "forged"),
        ({"update_id": "run:1:hospital-7"}, "forged"),
        ({"turn": 0, "update_id": "run:hospital-7:v0.-1"}, "forged"),
        ({"base_version": 1}, "unknown_version"),
    ],
)
def test_who_is_not_on_the_list_or_has_anothers_id_is_rejected(
    changes: dict[str, Any], reason: str
) -> None:
    sites = Sites()
    assert only(Reject, sites.send("hospital-7", **changes)).reason == reason
    assert sites.coordinator.buffer.size == 0


def test_a_failure_at_a_site_is_recorded_and_one_of_a_stranger_rejected() -> None:
    sites = Sites()
    fields = {"run": RUN, "turn": 1, "base_version": 0, "worker": "w", "reason": "ValueError"}
    own = ClientFailed(update_id="run:lab-3:v0.0", client="lab-3", **fields)
    only(RecordFailure, sites.give(own))
    stranger = ClientFailed(update_id="run:lab-9:v0.0", client="lab-9", **fields)
    assert only(Reject, sites.give(stranger)).reason == "not_allowed"


def submission(message: Message, user: str | None) -> Envelope:
    return dataclasses.replace(Envelope.of(message), user_id=user)


def resident_update(client: str, model: GlobalModel) -> ClientUpdate:
    return ClientUpdate(
        run=model.run,
        update_id=resident_update_id(model.run.run_id, client, model.version, model.attempt),
        client=client,
        turn=model.attempt + 1,
        base_version=model.version,
        worker=client,
        sends="delta",
        examples=10,
        slot_s=1.0,
        tensors={"trainable/0": np.ones(4, np.float32)},
    )


def test_a_run_of_residents_counts_what_the_broker_vouches_for_and_nothing_else(
    tmp_path: Path,
) -> None:
    # Given a run of residents alone, of which one is there
    broker = EmbeddedBroker()
    tables = Experiment.model_validate(
        {
            "experiment": {"versions": 3},
            "task": {"clients": 0},
            "participation": {"residents": list(SITES)},
            "aggregation": {"quorum": 1},
            "evaluation": {"every_updates": 0},
        }
    )
    weights_0 = {"trainable/0": np.zeros(4, np.float32)}
    service = AggregatorService(
        tables, broker.aggregator(), tmp_path, run_id="run", initial=weights_0
    )
    thread = threading.Thread(target=service.run, daemon=True)
    thread.start()
    port = broker.worker("hospital-7", 0)
    newest, sent = None, 0
    while True:
        envelope = port.wait_model(newest, 10)
        assert envelope is not None
        newest = order(envelope.headers)
        model = decode(envelope.body)
        assert isinstance(model, GlobalModel)
        if model.final:
            break
        # When every version brings an update of its own, and forgeries of all kinds
        own, others = resident_update("hospital-7", model), resident_update("lab-3", model)
        pooled = own.model_copy(update={"client": "0", "update_id": "run:1:0", "turn": 1})
        measured = Evaluation(
            **{"run": model.run, "version": model.version, "worker": "hospital-7"},
            **{"metrics": {"accuracy": 1.0}, "examples": 1},
        )
        for message, user in [
            (own, None),
            (own.model_copy(update={"examples": 11}), "lab-3"),
            (others, "hospital-7"),
            (others, "worker"),
            (pooled, "hospital-7"),
            (measured, "hospital-7"),
            (resident_update("clinic-9", model), "clinic-9"),
            (own, "hospital-7"),
        ]:
            port.submit(submission(message, user))
        sent += 1
    thread.join(10)
    # Then its own counts once for each version, and the rest is rejected for what it is
    ledger = Ledger(tmp_path)
    assert verify(ledger) == []
    summary = summarise(ledger)
    assert (summary["status"], summary["versions"], sent) == ("finished", 3, 3)
    assert summary["updates_counted"] == 3
    assert ledger.query("SELECT DISTINCT client FROM updates") == [("hospital-7",)]
    assert summary["updates_rejected"] == {"no_identity": 3, "forged": 15, "not_allowed": 3}
    assert summary["accuracy"] is None
    assert summary["train_fraction"] == 0.0, "residents' time is part of the totals"


def test_the_allow_list_may_grow_when_a_run_is_resumed(tmp_path: Path) -> None:
    def experiment(*residents: str) -> Experiment:
        return Experiment.model_validate({"participation": {"residents": list(residents)}})

    ledger = Ledger(tmp_path)
    ledger.open_run(experiment("a"), "run", 1)
    assert ledger.open_run(experiment("a", "b"), "run", 1)


class Scripted(threading.Thread):
    """A site that keeps the protocol, but for the training: one update for each version and
    attempt above the last, confirmed; and sometimes once more, as after a lost confirm."""

    def __init__(self, broker: EmbeddedBroker, client: str) -> None:
        super().__init__(daemon=True)
        self.sent: set[str] = set()
        self.client = client
        self._port = broker.worker(client, 0)

    def run(self) -> None:
        newest, behind = None, (-1, 0)
        while (envelope := self._port.wait_model(newest, 20)) is not None:
            newest = order(envelope.headers)
            model = envelope.message()
            assert isinstance(model, GlobalModel)
            if model.final:
                return
            if (model.version, model.attempt) > behind:
                behind = (model.version, model.attempt)
                update = resident_update(self.client, model)
                for _ in range(1 + model.version % 2):
                    self._port.submit(submission(update, self.client))
                self.sent.add(update.update_id)


def test_an_aggregator_that_dies_again_and_again_counts_each_site_once_a_version(
    tmp_path: Path,
) -> None:
    # Given three sites, of which two make a version, and aggregators that die every few updates
    broker = EmbeddedBroker()
    tables = Experiment.model_validate(
        {
            "experiment": {"versions": 30},
            "task": {"clients": 0},
            "participation": {"residents": list(SITES)},
            "aggregation": {"quorum": 2, "deadline_s": 0.2},
            "evaluation": {"every_updates": 0},
        }
    )
    sites = [Scripted(broker, client) for client in SITES]
    for site in sites:
        site.start()
    deaths = 0
    while True:
        port = broker.aggregator()
        initial = {"trainable/0": np.zeros(4, np.float32)}
        service = AggregatorService(tables, port, tmp_path, run_id="run", initial=initial)
        at = sum(len(site.sent) for site in sites) + 10
        killer = threading.Thread(target=close_when, args=(port, sites, at), daemon=True)
        killer.start()
        try:
            assert service.run() == "finished"
            break
        except Closed:
            deaths += 1
    # Then the run is whole, and what was confirmed is in it, rejected, or still in the queue
    for site in sites:
        site.join(20)
        assert not site.is_alive()
    ledger = Ledger(tmp_path)
    assert verify(ledger) == []
    assert deaths >= 3
    assert summarise(ledger)["versions"] == 30
    known = {one for (one,) in ledger.query("SELECT update_id FROM updates")}
    rejected = {one for (one,) in ledger.query("SELECT message_id FROM rejections")}
    queued = set()
    port.close()
    port = broker.aggregator()
    assert port.lead(1)
    port.consume(1000)
    while (delivery := port.receive(0.01)) is not None:
        queued.add(delivery.envelope.message_id)
    assert {one for site in sites for one in site.sent} == known | rejected | queued


def test_sites_can_go_on_with_a_run_that_was_aborted_with_their_updates_unused(
    tmp_path: Path,
) -> None:
    # Given a run that was aborted when one of two sites had answered
    broker, now = EmbeddedBroker(), 0.0
    tables = Experiment.model_validate(
        {
            "experiment": {"versions": 1},
            "task": {"clients": 0},
            "participation": {"residents": list(SITES), "identity": "none"},
            "aggregation": {"quorum": 2, "on_deadline": "abort", "deadline_s": 10.0},
            "evaluation": {"every_updates": 0},
        }
    )

    def led() -> tuple[AggregatorService, Any]:
        port = broker.aggregator()
        assert port.lead(1.0)
        initial = {"trainable/0": np.zeros(4, np.float32)}
        leader = AggregatorService(
            tables, port, tmp_path, run_id="run", initial=initial, clock=lambda: now
        )
        leader.begin()
        return leader, port

    sites = {name: broker.worker(name, 0) for name in ("lab-3", "clinic-2")}

    def answer(*names: str) -> None:
        for name in names:
            newest = sites[name].newest_model()
            assert newest is not None
            model = newest.message()
            assert isinstance(model, GlobalModel)
            sites[name].submit(Envelope.of(resident_update(name, model)))
        while leader.pump(0.0):
            pass

    leader, port = led()
    answer("lab-3")
    now = 10.0
    leader.pump(0.0)
    assert leader.outcome == "aborted"
    leader.close()
    port.close()
    # When a person starts it again, then both sites are asked, and both count
    leader, port = led()
    answer("lab-3", "clinic-2")
    assert leader.outcome == "finished"
    leader.close()
    ledger = Ledger(tmp_path)
    rows = ledger.query("SELECT disposition, client FROM updates ORDER BY version, client")
    assert rows == [("unused", "lab-3"), ("counted", "clinic-2"), ("counted", "lab-3")]
    assert verify(ledger) == []


def test_what_was_rejected_as_repeated_is_not_counted_when_it_comes_back_first(
    tmp_path: Path,
) -> None:
    # Given a leader that has one update of a site in hand, and has rejected its second as repeated
    broker = EmbeddedBroker()
    tables = Experiment.model_validate(
        {
            "task": {"clients": 0},
            "participation": {"residents": list(SITES), "identity": "none"},
            "aggregation": {"quorum": 3, "deadline_s": 1000.0},
        }
    )

    def led() -> tuple[AggregatorService, Any]:
        port = broker.aggregator()
        assert port.lead(1.0)
        initial = {"trainable/0": np.zeros(4, np.float32)}
        leader = AggregatorService(tables, port, tmp_path, run_id="run", initial=initial)
        leader.begin()
        return leader, port

    leader, port = led()
    site = broker.worker("lab-3", 0)
    newest = site.newest_model()
    assert newest is not None
    model = newest.message()
    assert isinstance(model, GlobalModel)
    first = resident_update("lab-3", model)
    second = resident_update("lab-3", model.model_copy(update={"attempt": 1}))
    for update in (first, second):
        site.submit(Envelope.of(update))
        assert leader.pump(0.0)
    # When it is killed before either is acked, and they come to the next one in another order
    leader.close()
    port.close()
    site.submit(Envelope.of(second))
    broker.updates._ready.rotate(1)
    leader, port = led()
    while leader.pump(0.0):
        pass
    leader.pause()
    leader.close()
    # Then each has one disposition
    ledger = Ledger(tmp_path)
    assert ledger.query("SELECT update_id FROM updates") == [(first.update_id,)]
    assert ledger.query("SELECT message_id, reason FROM rejections") == [
        (second.update_id, "repeated")
    ]
    assert verify(ledger) == []


def close_when(port: Any, sites: list[Scripted], sent: int) -> None:
    pause = threading.Event()
    for _ in range(20_000):
        if sum(len(site.sent) for site in sites) >= sent:
            break
        pause.wait(0.001)
    port.close()


def test_a_resident_that_counts_twice_for_a_version_is_named(tmp_path: Path) -> None:
    # Given a run of two versions, by pooled clients
    folder = Federation(tmp_path, aggregation={"quorum": 3, "deadline_s": 1000.0}).finish(2)
    ledger = Ledger(folder)
    assert verify(ledger) == []
    # When its ledger says that they were one site
    ledger.query("UPDATE updates SET client = 'lab-3' WHERE version = 1")
    # Then that is one of the things that are wrong
    assert "lab-3 counts 3 times for training version 0" in "\n".join(verify(ledger))
