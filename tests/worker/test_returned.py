"""A turn that the broker takes back while it is trained is trained once, however often it comes."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.service import AggregatorService
from fluffle.broker import Delivery, Envelope
from fluffle.broker.embedded import EmbeddedBroker
from fluffle.schemas import Assignment, Experiment, Run
from fluffle.worker.services.client_state import ClientStates
from fluffle.worker.services.returned import ReturnedTurns
from fluffle.worker.services.shutdown import Shutdown
from fluffle.worker.services.slot import Slot, SlotContext
from tests.worker.test_user_code import WEIGHTS, UsersTrainer

EXPERIMENT = Experiment.model_validate(
    {
        "experiment": {"versions": 3},
        "task": {"clients": 2},
        "participation": {"concurrency": 2, "assignment_deadline_s": 1e6},
        "aggregation": {"quorum": 2, "deadline_s": 1e6},
        "evaluation": {"every_updates": 0},
    }
)


class LongTraining(UsersTrainer):
    """Each training lasts longer than the broker leaves a turn with a worker."""

    def __init__(self, broker: EmbeddedBroker, port: object) -> None:
        super().__init__(None)
        self._broker, self._port = broker, port
        #: (run seed, client, turn) -> trainings.
        self.trainings: Counter[tuple[Any, ...]] = Counter()

    def train(self, base: Any, *about: Any) -> Any:
        self.trainings[tuple(map(str, about))] += 1
        with self._broker.changed:
            self._broker.assignments.give_back(self._port)
            self._broker.changed.notify_all()
        return super().train(base, *about)


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.timeout(60)
def test_a_training_longer_than_the_brokers_timeout_is_done_once(
    tmp_path: Path, slots: int
) -> None:
    # Given a broker that takes every turn back before its training is over
    broker = EmbeddedBroker()
    port = broker.worker("w", slots)
    shutdown = Shutdown(port)
    trainer = LongTraining(broker, port)
    context = SlotContext(worker_id="w", port=port, shutdown=shutdown, states=ClientStates())
    threads = [
        threading.Thread(target=Slot(context, lambda plan: trainer).run)  # type: ignore[arg-type,return-value]
        for _ in range(slots)
    ]
    for thread in threads:
        thread.start()
    # When a run is led whose turns may take for ever
    service = AggregatorService(
        EXPERIMENT, broker.aggregator(), tmp_path, run_id="run", initial=WEIGHTS
    )
    try:
        outcome = service.run()
    finally:
        shutdown.stop()
        for thread in threads:
            thread.join()
    # Then it ends, every turn was trained once, and no answer came twice
    assert outcome == "finished"
    assert set(trainer.trainings.values()) == {1}
    assert LedgerReader(tmp_path).count("updates WHERE turn > 0") == 6


def test_what_is_asked_anew_is_trained_anew() -> None:
    # Given a turn that was answered
    turns, run = ReturnedTurns(), Run(run_id="run", run_started=1, epoch=1)
    turn = Assignment(run=run, assignment_id="run:1:0", client="0", turn=1, version=0)
    envelope = Envelope.of(turn)
    assert turns.begin(turn, Delivery(envelope, 0, 1)) is None
    assert [d.receipt for d in turns.end(turn, answered=True)] == [1]
    # When it comes back, it is done with; when its leader, or the next one, asks again, it is not
    again = Delivery(envelope, 1, 2)
    assert turns.begin(turn, again) == [again]
    assert turns.begin(turn, Delivery(envelope, 0, 3)) is None
    turns.end(turn, answered=True)
    later = turn.model_copy(update={"run": run.model_copy(update={"epoch": 2})})
    assert turns.begin(later, Delivery(envelope, 1, 4)) is None
    # And one that was not answered is trained when it comes back
    assert [d.receipt for d in turns.end(later, answered=False)] == [4]
    assert turns.begin(later, Delivery(envelope, 2, 5)) is None
