"""Who is told to stop sends what it has trained, and waits for the broker only so long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fluffle.broker import Closed, Envelope
from fluffle.broker.embedded import EmbeddedBroker, EmbeddedWorkerPort
from fluffle.schemas import Assignment, Evaluation, Experiment, GlobalModel, Plan, Run
from fluffle.worker.services.evaluator import EvaluatorService
from fluffle.worker.services.shutdown import Shutdown
from fluffle.worker.services.worker import WorkerService
from fluffle.worker.training.per_plan import make_trainer

PATIENCE_S = 60.0
RUN = Run(run_id="run", run_started=1, epoch=1)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def at_work(service: WorkerService | EvaluatorService) -> Iterator[threading.Thread]:
    """Ends well, and in time."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            service.run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield thread
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert errors == []


class Port(EmbeddedWorkerPort):
    """Says what was given to it."""

    def __init__(self, broker: EmbeddedBroker, worker_id: str, slots: int) -> None:
        super().__init__(broker, worker_id, slots)
        self.given: list[Envelope] = []

    def submit(self, envelope: Envelope) -> None:
        self.given.append(envelope)
        super().submit(envelope)


class Place:
    """A broker whose updates are full already, and a leader that publishes what a test says."""

    def __init__(self) -> None:
        self.broker = EmbeddedBroker(max_updates_bytes=1)
        self.leader = self.broker.aggregator()
        self.leader.lead(1)
        self.broker.worker("before", 0).submit(self.evaluation())

    def evaluation(self) -> Envelope:
        return Envelope.of(
            Evaluation(run=RUN, version=0, worker="w", metrics={}, examples=1, seconds=0.0)
        )

    def publish(self, final: bool = False) -> None:
        tables: dict[str, Any] = {"task": {"name": "digits-lr", "clients": 4}}
        plan = Plan.of(Experiment.model_validate(tables), "delta")
        tensors = make_trainer(plan).initial()
        version = int(final)
        model = GlobalModel(run=RUN, version=version, final=final, plan=plan, tensors=tensors)
        self.leader.publish_model(Envelope.of(model))

    def take(self) -> None:
        """An update, so that there is room for one."""
        self.leader.consume(10)
        while (delivery := self.leader.receive(PATIENCE_S)) is not None and delivery.is_event:
            pass
        assert delivery is not None

    def assign(self, count: int) -> None:
        turns = [
            Assignment(run=RUN, assignment_id=f"run:{i}:{i}", client=str(i), turn=i, version=0)
            for i in range(1, count + 1)
        ]
        self.leader.assign([Envelope.of(turn) for turn in turns], expires_s=600)


def gave_up(said: list[str]) -> list[str]:
    """What was said of leaving without a confirm."""
    return [line for line in said if "stopped before" in line]


@pytest.fixture
def place() -> Place:
    return Place()


def leave_within(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluffle.worker.services.shutdown.LEAVE_S", seconds)


@pytest.mark.tensorflow
@pytest.mark.parametrize("because", ["told to", "the run is over"])
def test_a_worker_whose_updates_are_not_taken_leaves_and_gives_its_turns_back(
    place: Place, monkeypatch: pytest.MonkeyPatch, because: str, said: list[str]
) -> None:
    leave_within(0.3, monkeypatch)
    # Given two slots that have trained and wait for a full queue, and a turn that nobody has
    port = Port(place.broker, "w", 2)
    service = WorkerService(port, "w", 2)
    with at_work(service):
        place.publish()
        place.assign(3)
        until(lambda: len(port.given) == 2)
        # When the worker is told to stop, or the run is over and nobody empties the queue any more
        if because == "told to":
            service.stop()
        else:
            place.publish(final=True)
    # Then it leaves and says why, once, and every turn is there for another worker
    assert gave_up(said) == ["stopped before the broker had confirmed the last update"]
    depths = place.broker.depths()
    assert (depths["updates"], depths["assignments"]) == (1, 3)


@pytest.mark.tensorflow
def test_a_worker_that_is_told_to_stop_has_time_for_its_confirm(
    place: Place, said: list[str]
) -> None:
    # Given a slot that waits for a full queue, and is told to stop
    port = Port(place.broker, "w", 1)
    service = WorkerService(port, "w", 1)
    with at_work(service):
        place.publish()
        place.assign(1)
        until(lambda: len(port.given) == 1)
        service.stop()
        # When the queue takes messages again
        place.take()
    # Then its update is there, its turn is done with, and there is nothing to say
    depths = place.broker.depths()
    assert (depths["updates"], depths["unacked"], depths["assignments"]) == (1, 1, 0)
    assert gave_up(said) == []


@pytest.mark.tensorflow
def test_an_evaluator_does_not_wait_for_ever_either(
    place: Place, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    leave_within(0.3, monkeypatch)
    port = Port(place.broker, "e", 0)
    service = EvaluatorService(port, "e")
    with at_work(service):
        place.publish()
        until(lambda: len(port.given) == 1)
        service.stop()
    assert gave_up(said) == ["stopped before the broker had confirmed the last evaluation"]


def test_what_was_confirmed_in_time_cuts_nobody_else_off(
    place: Place, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    leave_within(1.0, monkeypatch)
    # Given two slots: one waits for its confirm when they are told to stop, the other trains on
    port = Port(place.broker, "w", 2)
    leaving = Shutdown(port)
    waits = threading.Thread(target=leaving.submit, args=(place.evaluation(),))
    waits.start()
    until(lambda: len(port.given) == 1)
    leaving.stop()
    # When the first is confirmed, and so much time has passed that it would have given up
    place.take()
    waits.join(PATIENCE_S)
    until(lambda: not any(isinstance(one, threading.Timer) for one in threading.enumerate()))
    # Then the other can still send, and is given up no sooner than any
    place.take()
    leaving.submit(place.evaluation())
    assert gave_up(said) == []
    with pytest.raises(Closed):
        leaving.submit(place.evaluation())
    assert len(gave_up(said)) == 1
