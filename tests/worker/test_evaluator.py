"""An evaluator that comes when a run is over, or nearly so."""

from __future__ import annotations

import threading

import pytest

from fluffle.broker import Envelope
from fluffle.broker.embedded import EmbeddedBroker
from fluffle.schemas import Evaluation, Experiment, GlobalModel, Plan, Run
from fluffle.worker.services.evaluator import Cadence, EvaluatorService
from fluffle.worker.training.per_plan import make_trainer

PATIENCE_S = 60.0
RUN = Run(run_id="run", run_started=1, epoch=1)
PLAN = Plan.of(Experiment.model_validate({"task": {"name": "digits-lr", "clients": 4}}), "delta")


def last(attempt: int, run: Run = RUN) -> GlobalModel:
    return GlobalModel(run=run, version=7, attempt=attempt, final=True, plan=PLAN, tensors={})


def test_only_what_was_published_since_it_came_is_waited_for() -> None:
    cadence = Cadence()
    # The newest model of the broker may be of a run that ended days ago, and comes again
    assert not cadence.waited_for(last(1))
    assert not cadence.waited_for(last(1))
    # Another run's is as old
    other = RUN.model_copy(update={"run_id": "other", "run_started": 2})
    assert not cadence.waited_for(last(9, other))
    # A further attempt is new
    assert cadence.waited_for(last(10, other))


@pytest.mark.tensorflow
def test_an_evaluator_that_comes_back_after_the_last_version_evaluates_it() -> None:
    # Given a run whose last version was published before the evaluator came
    broker = EmbeddedBroker()
    leader = broker.aggregator()
    leader.lead(1)
    leader.consume(10)
    tensors = make_trainer(PLAN).initial()
    leader.publish_model(Envelope.of(last(1).model_copy(update={"tensors": tensors})))
    service = EvaluatorService(broker.worker("e", 0), "e")
    thread = threading.Thread(target=service.run, daemon=True)
    thread.start()
    assert leader.receive(1.0) is None
    # When its aggregator, which waits, publishes it again
    leader.publish_model(Envelope.of(last(2).model_copy(update={"tensors": tensors})))
    # Then it is evaluated, and the evaluator leaves
    delivery = leader.receive(PATIENCE_S)
    assert delivery is not None
    evaluation = delivery.envelope.message()
    assert isinstance(evaluation, Evaluation)
    assert evaluation.version == 7
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
