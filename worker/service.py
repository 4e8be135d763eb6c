"""A worker as a service: slots that take turns, train, and send what comes of it.

One slot is one thread with one compiled trainer, reused for every client. A turn is acked only
after its answer is confirmed, so a worker that dies gives its turns back. Models are kept as
bytes and decoded when a turn starts.

    take a turn ─> wait for its model ─> train ─> submit (confirmed) ─> ack the turn
          └─> of the past: ack        └─> fails: submit ClientFailed ─> ack the turn
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from broker import Closed, Delivery, Envelope, MessageTooLarge, WorkerPort
from schemas import (
    Assignment,
    ClientFailed,
    DecodeError,
    Event,
    GlobalModel,
    Message,
    Plan,
    Run,
    decode,
    encode,
)
from schemas.messages import order
from worker.turn import failed_update, initial_update, leadership, make_update, verdict

if TYPE_CHECKING:
    from worker.trainer import Trainer

_LOOK_UP_S = 0.5
#: After failures in a row a slot rests, so that a broken worker does not eat all turns.
_REST_S = 0.1
_LONGEST_REST_S = 30.0


class WorkerService:
    """Trains clients in ``slots`` threads until the run is over or it is told to stop."""

    def __init__(
        self,
        port: WorkerPort,
        worker_id: str,
        slots: int,
        *,
        stay: bool = False,
        on_status: Callable[[str], None] = lambda text: None,
        on_model: Callable[[GlobalModel, int], None] = lambda model, size: None,
        on_turn: Callable[[Message | None], None] = lambda answer: None,
    ) -> None:
        """
        stay: wait for the next run when one is over.
        on_model: is told of every model that arrives, and its size in bytes.
        on_turn: is told, by slots, what a turn brought; None where it was for nobody any more.
        """
        self.worker_id = worker_id
        self._port = port
        self._slots = slots
        self._stay = stay
        self._say = on_status
        self._on_model = on_model
        self._on_turn = on_turn
        self._stop = threading.Event()
        self._received = 0
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def stop(self) -> None:
        """Stop when the trainings under way are done. From any thread, or a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Work until the run is over, or stopped. Raises: UserError, Closed."""
        threads = [
            threading.Thread(target=self._slot, name=f"slot-{i}", daemon=True)
            for i in range(self._slots)
        ]
        for thread in threads:
            thread.start()
        try:
            self._watch_models()
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
        if self._error is not None:
            raise self._error

    def _watch_models(self) -> None:
        """Count what arrives, and leave when the run that we worked for is over."""
        newest, joined = None, None
        while not self._stop.is_set():
            envelope = self._port.wait_model(newest, _LOOK_UP_S)
            if envelope is None:
                continue
            newest = order(envelope.headers)
            with self._lock:
                self._received += len(envelope.body)
            model = decode(envelope.body)
            if not isinstance(model, GlobalModel):
                continue
            self._on_model(model, len(envelope.body))
            if not model.final and joined != model.run:
                joined = model.run
                self._emit(Event(run=model.run, kind="joined", worker=self.worker_id,
                                 slots=self._slots))  # fmt: skip
            elif model.final and joined is not None:
                self._emit(Event(run=model.run, kind="left", worker=self.worker_id))
                joined = None
                if not self._stay:
                    return
                self._say(f"run {model.run.run_id} is over; waiting for the next")

    def _emit(self, event: Event) -> None:
        self._port.emit(_envelope(event))

    # ---- one slot

    def _slot(self) -> None:
        try:
            _Slot(self).run()
        except Closed:
            if not self._stop.is_set():
                self._error = Closed("the connection was closed")
        except BaseException as error:
            self._error = error
        finally:
            self._stop.set()

    def take_received(self) -> int:
        """Bytes of models received since somebody asked last."""
        with self._lock:
            received, self._received = self._received, 0
        return received


class _Slot:
    """One thread that trains."""

    def __init__(self, service: WorkerService) -> None:
        self._service = service
        self._port = service._port
        self._stop = service._stop
        self._trainer: tuple[Plan, Trainer] | None = None
        self._failures = 0
        self._free_since = time.perf_counter()

    def run(self) -> None:
        while not self._stop.is_set():
            delivery = self._port.receive_assignment(_LOOK_UP_S)
            if delivery is not None:
                self._turn(delivery)

    def _turn(self, delivery: Delivery) -> None:
        try:
            assignment = decode(delivery.envelope.body)
        except DecodeError as error:
            self._service._say(f"dropped a turn: {error}")
            self._port.ack(delivery)
            return
        if not isinstance(assignment, Assignment):
            self._port.ack(delivery)
            return
        model = None if assignment.kind == "initialise" else self._model_for(assignment)
        if assignment.kind == "train" and model is None:
            if not self._stop.is_set():
                self._port.ack(delivery)
                self._service._on_turn(None)
            return
        answer = self._answer(assignment, model)
        if answer is not None:
            answer = self._submit(assignment, answer)
        self._port.ack(delivery)
        self._service._on_turn(answer)
        if model is not None:
            self._rest(model.plan, assignment)

    def _model_for(self, assignment: Assignment) -> GlobalModel | None:
        """The model to train, waiting for it where it has not come yet; None to drop the turn."""
        envelope = self._port.newest_model()
        while not self._stop.is_set():
            model = decode(envelope.body) if envelope else None
            assert model is None or isinstance(model, GlobalModel)
            match verdict(assignment, model):
                case "train":
                    return model
                case "drop":
                    return None
            newest = order(envelope.headers) if envelope else None
            envelope = self._port.wait_model(newest, _LOOK_UP_S) or envelope
        return None

    def _answer(self, assignment: Assignment, model: GlobalModel | None) -> Message | None:
        """Train; what to send. None if the run ended meanwhile."""
        try:
            if model is None:
                assert assignment.plan is not None
                weights = self._trainer_for(assignment.plan).initial()
                update = initial_update(assignment, self._service.worker_id, weights)
            else:
                trainer = self._trainer_for(model.plan)
                trained = trainer.train(model.tensors, assignment.client, assignment.turn)
                update = make_update(
                    assignment,
                    model,
                    trained,
                    self._service.worker_id,
                    self._slot_s(),
                    self._service.take_received(),
                )
            self._failures = 0
        except Exception as error:  # whatever a task raises costs one turn, never the worker
            self._failures += 1
            return self._failed(assignment, model, error)
        return None if self._is_over(assignment.run) else update

    def _failed(
        self, assignment: Assignment, model: GlobalModel | None, error: Exception
    ) -> ClientFailed:
        base_version = model.version if model else 0
        failed = failed_update(assignment, self._service.worker_id, base_version, error)
        self._service._say(f"client {assignment.client}: {failed.reason}")
        return failed

    def _submit(self, assignment: Assignment, answer: Message) -> Message:
        """What was sent in the end."""
        try:
            self._port.submit(_envelope(answer))
        except MessageTooLarge as error:
            answer = self._failed(assignment, None, error)
            self._port.submit(_envelope(answer))
        return answer

    def _trainer_for(self, plan: Plan) -> Trainer:
        from worker.trainer import Trainer  # TensorFlow, only once there is something to train

        if self._trainer is None or self._trainer[0] != plan:
            self._trainer = None  # let the old one go before the new one is built
            self._trainer = (plan, Trainer(plan))
        return self._trainer[1]

    def _slot_s(self) -> float:
        now = time.perf_counter()
        passed, self._free_since = now - self._free_since, now
        return passed

    def _is_over(self, run: Run) -> bool:
        """Whether this run has ended, or another leads now: what was trained is for nobody."""
        envelope = self._port.newest_model()
        model = decode(envelope.body) if envelope else None
        if not isinstance(model, GlobalModel):
            return False
        same = model.run.run_id == run.run_id
        return model.final if same else leadership(model.run) > leadership(run)

    def _rest(self, plan: Plan, assignment: Assignment) -> None:
        low, high = plan.pause_s
        pause = min(_LONGEST_REST_S, _REST_S * 2**self._failures) if self._failures else 0.0
        if high > 0:
            rng = np.random.default_rng([plan.seed, int(assignment.client), assignment.turn])
            pause = max(pause, float(rng.uniform(low, high)))
        if pause:
            self._stop.wait(pause)


def _envelope(message: Message) -> Envelope:
    return Envelope.of(message, encode(message))
