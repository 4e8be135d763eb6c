"""The evaluator as a service: measures versions of the global model on held-out examples."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from broker import Envelope, WorkerPort
from schemas import Evaluation, GlobalModel, Plan, decode, encode
from schemas.messages import order

if TYPE_CHECKING:
    from worker.trainer import Trainer

_LOOK_UP_S = 0.5


class EvaluatorService:
    """Evaluates the newest version whenever enough updates have been counted, and the last one."""

    def __init__(
        self,
        port: WorkerPort,
        evaluator_id: str,
        *,
        stay: bool = False,
        on_status: Callable[[str], None] = lambda text: None,
        on_evaluation: Callable[[Evaluation], None] = lambda evaluation: None,
    ) -> None:
        """``stay`` waits for the next run; ``on_evaluation`` hears what was sent."""
        self._port = port
        self._id = evaluator_id
        self._stay = stay
        self._say = on_status
        self._on_evaluation = on_evaluation
        self._stop = threading.Event()
        self._trainer: tuple[Plan, Trainer] | None = None

    def stop(self) -> None:
        """Stop after the evaluation under way. From any thread, or a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Evaluate until the run is over, or stopped. Raises: UserError, Closed."""
        newest, run_id, evaluated, evaluated_version = None, "", 0, -1
        while not self._stop.is_set():
            envelope = self._port.wait_model(newest, _LOOK_UP_S)
            if envelope is None:
                continue
            newest = order(envelope.headers)
            model = decode(envelope.body)
            if not isinstance(model, GlobalModel):
                continue
            late = model.final and model.run.run_id != run_id  # its run was over before we came
            if model.run.run_id != run_id:
                run_id, evaluated_version = model.run.run_id, -1
            every = model.plan.evaluation.every_updates
            due = model.final or evaluated_version < 0 or model.updates - evaluated >= every
            if every and due and not late and model.version != evaluated_version:
                self._evaluate(model)
                evaluated, evaluated_version = model.updates, model.version
            if model.final and not late:
                if not self._stay:
                    return
                self._say(f"run {run_id} is over; waiting for the next")

    def _evaluate(self, model: GlobalModel) -> None:
        from worker.trainer import Trainer  # TensorFlow, only once there is something to evaluate

        if self._trainer is None or self._trainer[0] != model.plan:
            self._trainer = None
            self._trainer = (model.plan, Trainer(model.plan))
        started = time.perf_counter()
        metrics, examples = self._trainer[1].evaluate(model.tensors)
        evaluation = Evaluation(
            run=model.run,
            version=model.version,
            worker=self._id,
            metrics=metrics,
            examples=examples,
            seconds=time.perf_counter() - started,
        )
        self._port.submit(Envelope.of(evaluation, encode(evaluation)))
        self._on_evaluation(evaluation)
