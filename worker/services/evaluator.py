"""The evaluator as a service: measures versions of the global model on held-out examples."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fluffle.broker import Closed, Envelope, WorkerPort
from fluffle.schemas import Assignment, Evaluation, GlobalModel, Message, Plan, Run
from fluffle.schemas.errors import contained, describe
from fluffle.schemas.messages import order
from fluffle.worker.services.answers import evaluation_of, failed_update, initial_update
from fluffle.worker.services.shutdown import Shutdown
from fluffle.worker.tasks.client_data import among_sites
from fluffle.worker.tasks.registry import load_task, trying
from fluffle.worker.training.per_plan import PerPlan, make_trainer

if TYPE_CHECKING:
    from fluffle.worker.training.trained import LocalTrainer

_log = logging.getLogger(__name__)

_LOOK_UP_S = 0.5


class Cadence:
    """Which versions are evaluated: the first seen, then every so many updates, and the last."""

    def __init__(self) -> None:
        self._run_id = ""
        self._version = -1
        self._updates = 0
        self._ended: tuple[Run, int] | None = None

    def knows(self, model: GlobalModel) -> bool:
        """Whether a model of this run has been seen."""
        return model.run.run_id == self._run_id

    def waited_for(self, model: GlobalModel) -> bool:
        """Whether the last version of a run that is new to us was published since we came.

        Then its aggregator waits for an evaluation; else the run may be over for days.
        """
        if self.knows(model):
            return True
        seen, self._ended = self._ended, (model.run, model.attempt)
        return seen is not None and seen[0] == model.run and seen[1] < model.attempt

    def due(self, model: GlobalModel) -> bool:
        """Whether this model is to be evaluated; it then counts as evaluated."""
        every = model.plan.evaluation.every_updates
        if not self.knows(model):
            self._run_id, self._version = model.run.run_id, -1
        enough = model.updates - self._updates >= every
        due = model.final or self._version < 0 or enough
        if not every or not due or model.version == self._version:
            return False
        self._version, self._updates = model.version, model.updates
        return True


class EvaluatorService:
    """Evaluates the newest version whenever enough updates have been counted, and the last one."""

    def __init__(
        self,
        port: WorkerPort,
        evaluator_id: str,
        *,
        stay: bool = False,
        on_evaluation: Callable[[Evaluation], None] = lambda evaluation: None,
        make_trainer: Callable[[Plan], LocalTrainer] = make_trainer,
    ) -> None:
        """``stay`` waits for the next run; ``on_evaluation`` hears what was sent."""
        self._port = port
        self._id = evaluator_id
        self._stay = stay
        self._on_evaluation = on_evaluation
        self._shutdown = Shutdown(port, "evaluation")
        self._trainers = PerPlan(make_trainer)
        self._has_evaluated = False

    def stop(self) -> None:
        """Stop when the evaluation under way is sent. From any thread, or a signal handler."""
        self._shutdown.stop()

    def run(self) -> None:
        """Evaluate until the run is over, or stopped. Raises: UserError, Closed."""
        try:
            self._watch_models()
        except Closed:
            if not self._shutdown.told.is_set():
                raise

    def _watch_models(self) -> None:
        newest, cadence = None, Cadence()
        while not self._shutdown.told.is_set():
            envelope = self._port.wait_model(newest, _LOOK_UP_S)
            if envelope is None:
                continue
            model = envelope.model()
            if model is None:
                self._port.forget_model(envelope)
                continue
            newest = order(envelope.headers)
            if model.asks_for_weights:
                self._initialise(model)
                continue
            if model.final and not cadence.waited_for(model):
                continue
            if not cadence.knows(model):
                _log.info("%s joined run %s", self._id, model.run.run_id)
            if cadence.due(model):
                self._evaluate(model)
            if model.final:
                _log.info(f"run {model.run.run_id} is over{'; waiting for the next' * self._stay}")
                if not self._stay:
                    return

    def _initialise(self, model: GlobalModel) -> None:
        """A run of resident clients alone has no worker that would take this turn."""
        turn = Assignment.to_initialise(model.run, model.plan)
        answer: Message
        try:
            with among_sites(model.plan.residents is not None):
                weights = self._trainers.of(model.plan).initial()
            answer = initial_update(turn, self._id, weights)
        except BaseException as error:  # it is the aggregator's to give up, after a few of these
            answer = failed_update(turn, self._id, 0, contained(error))
            _log.warning(f"no weights for version 0: {describe(error)}")
        self._shutdown.submit(Envelope.of(answer))

    def _evaluate(self, model: GlobalModel) -> None:
        """Measure it, and send that. Raises: UserError where the first one fails, and we do not
        stay: later on whatever a task raises costs one evaluation.
        """
        started = time.perf_counter()
        try:
            with among_sites(model.plan.residents is not None):
                trainer, task = self._trainers.of(model.plan), load_task(model.plan)
                metrics, examples = trying(task, lambda: trainer.evaluate(model.tensors))
            seconds = time.perf_counter() - started
            evaluation, left_out = evaluation_of(model, self._id, metrics, examples, seconds)
        except BaseException as error:
            contained(error)
            if not self._stay and not self._has_evaluated:
                raise
            _log.info(f"version {model.version} is not evaluated: {describe(error)}")
            return
        self._has_evaluated = True
        if left_out:
            _log.info(f"version {model.version}: {', '.join(left_out)} are not finite")
        self._shutdown.submit(Envelope.of(evaluation))
        self._on_evaluation(evaluation)
