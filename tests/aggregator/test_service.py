"""The aggregator's service on the embedded broker, with clients that are scripted here.

The clients speak the real protocol through a worker's port; they just do not train.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluffle.aggregator.coordinator.admission import OF_THEIR_TIME
from fluffle.aggregator.ledger.summary import summarise
from fluffle.aggregator.ledger.writer import Ledger, StaleLeader
from fluffle.aggregator.service import AggregatorService
from fluffle.aggregator.verify import verify
from fluffle.broker import Closed, Envelope
from fluffle.broker.embedded import EmbeddedBroker
from fluffle.schemas import (
    Assignment,
    ClientFailed,
    ClientUpdate,
    Evaluation,
    Experiment,
    GlobalModel,
    Message,
    Plan,
    Run,
    Tensors,
    UserError,
    decode,
)

WEIGHTS: Tensors = {"trainable/0": np.zeros(1000, np.float32)}
PLAN = Plan.of(Experiment(), "delta")


def experiment(**tables: Any) -> Experiment:
    tables.setdefault("experiment", {"versions": 10})
    tables.setdefault("task", {"clients": 6})
    tables.setdefault("evaluation", {"every_updates": 0})
    return Experiment.model_validate(tables)


def envelope(message: Message) -> Envelope:
    return Envelope.of(message)


class Clients:
    """A worker that answers every turn with ones, or with what ``answer`` makes of them."""

    def __init__(self, broker: EmbeddedBroker, answer: Callable[[ClientUpdate], Any] | None = None):
        self.port = broker.worker("scripted", 2)
        self.sent: list[str] = []
        self._answer = answer or (lambda update: update)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.port.close()

    def _work(self) -> None:
        while not self._stop.is_set():
            delivery = self.port.receive_assignment(0.05)
            if delivery is None:
                continue
            turn = decode(delivery.envelope.body)
            assert isinstance(turn, Assignment)
            answer = self._answer(self.update(turn))
            if answer is not None:
                for one in answer if isinstance(answer, list) else [answer]:
                    self.port.submit(one if isinstance(one, Envelope) else envelope(one))
                self.sent.append(turn.assignment_id)
                self.port.ack(delivery)

    def update(self, turn: Assignment) -> ClientUpdate:
        newest = self.port.newest_model()
        model = decode(newest.body) if newest else None
        initial = turn.kind == "initialise"
        return ClientUpdate(
            run=turn.run,
            update_id=turn.assignment_id,
            client=turn.client,
            turn=turn.turn,
            base_version=model.version if isinstance(model, GlobalModel) else 0,
            worker="scripted",
            sends="initial" if initial else "delta",
            examples=0 if initial else 10,
            train_s=0.01,
            slot_s=0.02,
            tensors=WEIGHTS if initial else {"trainable/0": np.ones(1000, np.float32)},
        )


@contextmanager
def clients(broker: EmbeddedBroker, answer: Any = None) -> Iterator[Clients]:
    team = Clients(broker, answer)
    try:
        yield team
    finally:
        team.close()


def service(broker: EmbeddedBroker, folder: Path, tables: Experiment) -> AggregatorService:
    return AggregatorService(tables, broker.aggregator(), folder, run_id="run")


def check(folder: Path) -> dict[str, Any]:
    ledger = Ledger(folder)
    assert verify(ledger) == []
    return summarise(ledger)


def test_a_run_from_nothing_to_its_last_version(tmp_path: Path) -> None:
    broker = EmbeddedBroker()
    with clients(broker):
        assert service(broker, tmp_path, experiment()).run() == "finished"
    summary = check(tmp_path)
    assert (summary["versions"], summary["updates_counted"]) == (10, 30)
    assert summary["train_fraction"] == 0.5
    assert summary["bytes_up"] > 30 * 4000
    assert broker.depths()["unacked"] == 0
    newest = broker.worker("late", 0).newest_model()
    assert newest is not None
    model = decode(newest.body)
    assert isinstance(model, GlobalModel)
    assert model.final
    assert (model.version, model.updates) == (10, 30)


def test_bad_messages_are_rejected_with_a_reason_and_the_run_goes_on(tmp_path: Path) -> None:
    # Given clients that send, beside each update, one of everything that is wrong
    broker = EmbeddedBroker()

    def naughty(update: ClientUpdate) -> list[Any]:
        if update.sends == "initial" or update.turn % 5:
            return [update]
        nan = {"trainable/0": np.full(1000, np.nan, np.float32)}
        short = {"trainable/0": np.ones(999, np.float32)}
        other = Run(run_id="other", run_started=1, epoch=1)
        bad = [
            Envelope(b"\x00garbage" * update.turn, "client-update"),
            envelope(GlobalModel(run=update.run, version=update.turn, plan=PLAN, tensors=WEIGHTS)),
            envelope(update.model_copy(update={"tensors": nan})),
            envelope(update.model_copy(update={"tensors": short})),
            envelope(update.model_copy(update={"run": other})),
        ]
        return [*bad, update, envelope(update)]

    with clients(broker, naughty) as team:
        assert service(broker, tmp_path, experiment()).run() == "finished"
    # Then the good ones are counted once, the bad ones by their reasons, with a copy of each that
    # was not only slow
    summary = check(tmp_path)
    assert summary["versions"] == 10
    reasons = summary["updates_rejected"]
    for reason in ("undecodable", "wrong_type", "not_finite", "wrong_shape", "unknown_run"):
        assert reasons[reason] >= 1, reasons
    assert summary["duplicates"] >= 1
    copies = [e.headers["reason"] for e in broker.rejected()]
    assert len(copies) == sum(n for why, n in reasons.items() if why not in OF_THEIR_TIME)
    assert len(set(team.sent)) == len(team.sent)


def test_an_aggregator_that_dies_is_followed_by_one_that_resumes(tmp_path: Path) -> None:
    # Given a run whose aggregator loses its port every few versions
    broker = EmbeddedBroker()
    tables = experiment(experiment={"versions": 30}, aggregation={"quorum": 4})
    deaths = 0
    with clients(broker) as team:
        while True:
            port = broker.aggregator()
            one = AggregatorService(tables, port, tmp_path, run_id="run")
            at = len(team.sent) + 15
            killer = threading.Thread(target=_close_when, args=(port, team, at), daemon=True)
            killer.start()
            try:
                assert one.run() == "finished"
                break
            except Closed:
                deaths += 1
    # Then nothing is lost and nothing counted twice
    summary = check(tmp_path)
    assert deaths >= 3
    assert (summary["versions"], summary["updates_counted"]) == (30, 120)


def _close_when(port: Any, team: Clients, sent: int) -> None:
    done = threading.Event()
    while len(team.sent) < sent and not done.wait(0.001):
        pass
    port.close()


def test_stopping_saves_the_open_buffer_and_the_next_start_goes_on_with_it(tmp_path: Path) -> None:
    # Given a buffer that is far from its quorum
    broker = EmbeddedBroker()
    tables = experiment(
        experiment={"versions": 1},
        task={"clients": 20},
        aggregation={"quorum": 20, "deadline_s": 1000},
    )

    def only_ten(update: ClientUpdate) -> ClientUpdate | None:
        return update if update.sends == "initial" or update.turn <= 10 else None

    first = service(broker, tmp_path, tables)
    with clients(broker, only_ten) as team:
        thread = threading.Thread(target=first.run)
        thread.start()
        while len(team.sent) < 11 or broker.depths()["updates"]:
            threading.Event().wait(0.01)
        first.stop()
        thread.join()
    ledger = Ledger(tmp_path)
    assert ledger.count("updates WHERE disposition = 'buffered'") >= 8
    assert ledger.meta["status"] == "running"
    # When it is started again on a broker that knows nothing any more
    broker = EmbeddedBroker()
    with clients(broker):
        assert service(broker, tmp_path, tables).run() == "finished"
    assert check(tmp_path)["updates_counted"] == 20


def test_a_finished_run_started_again_just_says_so(tmp_path: Path) -> None:
    broker = EmbeddedBroker()
    with clients(broker):
        first = service(broker, tmp_path, experiment())
        assert first.run() == "finished"
    before = check(tmp_path)
    assert service(EmbeddedBroker(), tmp_path, experiment()).run() == "finished"
    assert check(tmp_path) == before


def test_a_finished_run_that_may_go_on_does(tmp_path: Path) -> None:
    for versions in (3, 7):
        broker = EmbeddedBroker()
        with clients(broker):
            tables = experiment(experiment={"versions": versions})
            assert service(broker, tmp_path, tables).run() == "finished"
    assert check(tmp_path)["versions"] == 7


def test_two_runs_on_one_broker_do_not_mix(tmp_path: Path) -> None:
    broker = EmbeddedBroker()
    for name in ("a", "b"):
        with clients(broker):
            port = broker.aggregator()
            one = AggregatorService(experiment(), port, tmp_path / name, run_id=name)
            assert one.run() == "finished"
            port.close()
    assert check(tmp_path / "b")["updates_counted"] == 30


def test_the_folder_of_another_experiment_is_refused(tmp_path: Path) -> None:
    broker = EmbeddedBroker()
    with clients(broker):
        service(broker, tmp_path, experiment()).run()
    other = experiment(task={"clients": 7})
    with pytest.raises(UserError, match=r"task\.clients"):
        service(EmbeddedBroker(), tmp_path, other).run()


def test_a_leader_that_was_replaced_says_so_and_commits_nothing(tmp_path: Path) -> None:
    # Given a leader whose ledger has entered another epoch
    broker = EmbeddedBroker()
    tables = experiment(experiment={"versions": 1000})
    caught: list[BaseException] = []

    def lead() -> None:
        try:
            service(broker, tmp_path, tables).run()
        except UserError as error:
            caught.append(error)

    thread = threading.Thread(target=lead)
    with clients(broker) as team:
        thread.start()
        while len(team.sent) < 5:
            threading.Event().wait(0.01)
        usurper = Ledger(tmp_path)
        usurper.lead()
        thread.join()
    assert "another aggregator took over" in str(caught[0])
    assert verify(usurper) == []


def test_a_leader_that_was_replaced_does_not_publish_its_old_model_again(tmp_path: Path) -> None:
    # Given a leader that publishes its model again, since nobody answers
    broker, now = EmbeddedBroker(), 0.0
    tables = experiment(aggregation={"deadline_s": 5.0})
    port = broker.aggregator()
    assert port.lead(1.0)
    leader = AggregatorService(tables, port, tmp_path, run_id="run", clock=lambda: now,
                               initial={"trainable/0": np.zeros(3, np.float32)})  # fmt: skip
    leader.begin()
    now = 5.0
    assert leader.pump(0.0)
    published = port.latest_model()
    assert published is not None
    assert published.headers["attempt"] == 1
    # When another has begun an epoch, and it is time to publish again
    Ledger(tmp_path).lead()
    now = 10.0
    # Then it notices before anybody hears of its model
    with pytest.raises(StaleLeader):
        leader.pump(0.0)
    assert port.latest_model() == published


def test_a_message_that_keeps_coming_back_is_taken_alone(tmp_path: Path) -> None:
    # Given updates that have come back three times already, as after three crashes
    broker = EmbeddedBroker()
    tables = experiment(aggregation={"quorum": 3}, experiment={"versions": 4})
    team = Clients(broker)
    port = broker.aggregator()
    first = AggregatorService(tables, port, tmp_path, run_id="run")
    thread = threading.Thread(target=_ignore_closed, args=(first.run,))
    thread.start()
    while len(team.sent) < 4:
        threading.Event().wait(0.01)
    port.close()
    thread.join()
    for _ in range(3):
        again = broker.aggregator()
        assert again.lead(1.0)
        again.consume(64)
        while again.receive(0.2):
            pass
        again.close()
    # When the run goes on
    assert service(broker, tmp_path, tables).run() == "finished"
    team.close()
    # Then nothing was lost over it
    assert check(tmp_path)["versions"] == 4


def _ignore_closed(run: Callable[[], object]) -> None:
    with suppress(Closed):
        run()


def test_evaluations_are_recorded_and_end_the_run_at_its_target(tmp_path: Path) -> None:
    broker = EmbeddedBroker()
    tables = experiment(
        experiment={"versions": 1000, "target_accuracy": 0.5}, evaluation={"every_updates": 1}
    )

    def measured(run: Run, version: int) -> Evaluation:
        metrics = {"accuracy": min(1.0, version / 10)}
        return Evaluation(run=run, version=version, worker="e", metrics=metrics, examples=10)

    def with_evaluation(update: ClientUpdate) -> list[Any]:
        initial = update.sends == "initial"
        return [update] if initial else [update, measured(update.run, update.base_version)]

    with clients(broker, with_evaluation):
        one = service(broker, tmp_path, tables)
        thread = threading.Thread(target=one.run)
        thread.start()
        while one.coordinator is None or one.coordinator.phase not in ("finishing", "done"):
            threading.Event().wait(0.01)
        last = one.coordinator.version
        broker.worker("e", 0).submit(envelope(measured(one.coordinator.run, last)))
        thread.join()
    summary = check(tmp_path)
    assert summary["status"] == "finished"
    assert summary["accuracy"] == min(1.0, last / 10)
    assert summary["evaluated_version"] == summary["versions"] == last


def test_what_says_it_is_another_kind_or_is_too_long_is_rejected(tmp_path: Path) -> None:
    # Given clients that also send their updates under the name of an event, and one far too long
    broker = EmbeddedBroker()

    def odd(update: ClientUpdate) -> list[Any]:
        if update.turn != 3:
            return [update]
        good = envelope(update)
        long = Envelope(bytes(8 * 1024**2), "client-update")
        return [dataclasses.replace(good, type="event"), long, update]

    with clients(broker, odd):
        assert service(broker, tmp_path, experiment()).run() == "finished"
    # Then these are rejected, and nothing stays in anybody's hands
    summary = check(tmp_path)
    assert summary["updates_rejected"].items() >= {"wrong_type": 1, "too_large": 1}.items()
    assert broker.depths()["unacked"] == 0


def test_a_held_update_sent_again_and_again_does_not_fill_our_hands(tmp_path: Path) -> None:
    # Given a client that sends its update a hundred times into a buffer that waits for others
    broker = EmbeddedBroker()

    def insistent(update: ClientUpdate) -> list[Any]:
        return [update] * (100 if update.turn == 1 else 1)

    tables = experiment(
        experiment={"versions": 2}, aggregation={"quorum": 3, "deadline_s": 60.0, "hold_s": 60.0}
    )
    started = time.monotonic()
    with clients(broker, insistent):
        assert service(broker, tmp_path, tables).run() == "finished"
    # Then the others are received at once: no timer had to make room
    assert time.monotonic() - started < 50
    assert check(tmp_path)["duplicates"] == 99


def test_a_failure_in_another_clients_name_closes_no_turn(tmp_path: Path) -> None:
    # Given clients that say of others that they have failed
    broker = EmbeddedBroker()

    def slander(update: ClientUpdate) -> list[Any]:
        said = {"run": update.run, "update_id": update.update_id, "turn": update.turn + 1}
        other = {"client": "0", "base_version": 0, "worker": "scripted", "reason": "slander"}
        return [ClientFailed(**said, **other), update] if update.turn else [update]

    with clients(broker, slander):
        assert service(broker, tmp_path, experiment()).run() == "finished"
    # Then none of it counts
    summary = check(tmp_path)
    assert summary["failures"] == 0
    assert summary["updates_rejected"]["forged"] >= 30


@pytest.mark.parametrize("deadline_s", [0.2, 1.5])
def test_a_standby_does_not_go_on_with_a_run_that_was_aborted(
    tmp_path: Path, deadline_s: float
) -> None:
    # Given a run that is to be aborted at its deadline, and an aggregator that stands by, if only
    # for so short a time that it never says so
    broker = EmbeddedBroker()
    tables = experiment(
        aggregation={
            "on_deadline": "abort", "deadline_s": deadline_s, "quorum": 6, "min_updates": 6,
        }
    )  # fmt: skip

    def initial_only(update: ClientUpdate) -> ClientUpdate | None:
        return update if update.sends == "initial" else None

    ends: list[str] = []

    def lead() -> None:
        port = broker.aggregator()
        try:
            ends.append(AggregatorService(tables, port, tmp_path, run_id="run").run())
        finally:
            port.close()

    threads = [threading.Thread(target=lead) for _ in range(2)]
    with clients(broker, initial_only):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    # Then it says the same, and has begun nothing
    assert ends == ["aborted", "aborted"]
    ledger = Ledger(tmp_path)
    assert (ledger.meta["status"], ledger.meta["epoch"]) == ("aborted", "1")
    # And a person who starts it again has it go on
    with clients(broker):
        assert service(broker, tmp_path, tables).run() == "finished"


def test_the_same_update_in_another_message_is_acked_only_once_it_is_recorded(
    tmp_path: Path,
) -> None:
    # Given one update of an open buffer that comes in two messages
    def twice(update: ClientUpdate) -> list[ClientUpdate] | None:
        if update.sends == "initial":
            return [update]
        return [update, update] if update.turn == 1 else None

    broker = EmbeddedBroker()
    port = broker.aggregator()
    assert port.lead(0.0)
    one = AggregatorService(experiment(), port, tmp_path, run_id="run")
    one.begin()
    with clients(broker, twice) as team:
        while len(team.sent) < 2 or broker.depths()["updates"]:
            one.pump(0.05)
    # Then both are acked, and the update is recorded: the first message may be gone by now
    assert broker.depths()["unacked"] == 0
    one.close()
    ledger = Ledger(tmp_path)
    assert ledger.count("updates WHERE disposition = 'buffered'") == 1
    assert ledger.meta["duplicates"] == "1"


def test_what_was_rejected_as_late_is_not_counted_once_the_run_goes_on_after_all(
    tmp_path: Path,
) -> None:
    # Given a run that is about to end as aborted, and waits for the evaluation of its last version
    broker, now = EmbeddedBroker(), 0.0
    tables = experiment(
        aggregation={"on_deadline": "abort", "deadline_s": 5.0, "quorum": 3, "min_updates": 3},
        participation={"concurrency": 3},
        evaluation={"every_updates": 1},
    )

    def led() -> tuple[AggregatorService, Any]:
        port = broker.aggregator()
        assert port.lead(1.0)
        leader = AggregatorService(tables, port, tmp_path, run_id="run", clock=lambda: now,
                                   initial={"trainable/0": np.zeros(3, np.float32)})  # fmt: skip
        leader.begin()
        return leader, port

    leader, port = led()
    worker = broker.worker("w", 10)
    turn = worker.receive_assignment(0.0)
    assert turn is not None
    assignment = turn.envelope.message()
    assert isinstance(assignment, Assignment)
    now = 5.0
    leader.pump(0.0)
    # When an update comes too late, and the aggregator is killed before the run has ended
    late = ClientUpdate(
        run=assignment.run, update_id=assignment.assignment_id, client=assignment.client,
        turn=assignment.turn, base_version=0, worker="w", sends="delta", examples=1,
        tensors={"trainable/0": np.ones(3, np.float32)},
    )  # fmt: skip
    worker.submit(envelope(late))
    assert leader.pump(0.0)
    leader.close()
    port.close()
    # And the next one goes on with the run, when the same message comes in another copy
    leader, port = led()
    worker.submit(envelope(late))
    assert leader.pump(0.0)
    leader.pause()
    leader.close()
    # Then it is as late as it was
    ledger = Ledger(tmp_path)
    assert ledger.query("SELECT reason, times FROM rejections") == [("late", 2)]
    assert broker.rejected() == []  # ordinary lateness does not push out what is worth a look
    assert not broker.depths()["updates"]
    assert ledger.count("updates WHERE update_id = ?", late.update_id) == 0
    assert verify(ledger) == []
