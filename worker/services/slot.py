"""One slot of a worker: a thread with one compiled trainer, which takes turns.

    take a turn ─> wait for its model ─> train ─> submit (confirmed) ─> ack the turn
          └─> of the past: ack        └─> fails: submit ClientFailed ─> ack the turn

Where the plan describes devices, the slot is one for the length of a turn: it waits until the
client is available, waits out download, training and upload, and loses what the device loses.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fluffle.broker import Delivery, Envelope, MessageTooLarge, WorkerPort
from fluffle.schemas import (
    Assignment,
    ClientFailed,
    ClientUpdate,
    DecodeError,
    GlobalModel,
    Message,
    Plan,
    Run,
    Tensors,
    UserError,
)
from fluffle.schemas.messages import order, state_name
from fluffle.worker.devices import DeviceOutcome, Devices
from fluffle.worker.services.client_state import ClientStates
from fluffle.worker.services.journal import Journal
from fluffle.worker.services.models import read_model
from fluffle.worker.services.outgoing import outgoing
from fluffle.worker.services.turn import (
    failed_update,
    initial_update,
    leadership,
    make_update,
    payload_bytes,
    verdict,
)
from fluffle.worker.training.per_plan import PerPlan, make_trainer

if TYPE_CHECKING:
    from fluffle.worker.training.trainer import Trainer

_LOOK_UP_S = 0.5
#: After failures in a row a slot rests, so that a broken worker does not eat all turns.
_REST_S = 0.1
_LONGEST_REST_S = 30.0


@dataclass(frozen=True)
class SlotContext:
    """What the slots of a worker share."""

    worker_id: str
    port: WorkerPort
    stop: threading.Event
    #: As the port's, but raises Closed where a worker that was told to stop has waited enough.
    submit: Callable[[Envelope], None]
    say: Callable[[str], None]
    #: Is told what a turn brought; None where it was for nobody any more, or was lost.
    on_turn: Callable[[Message | None], None]
    #: Bytes of models received since somebody asked last.
    take_received: Callable[[], int]
    journal: Journal
    states: ClientStates


class Slot:
    """Takes turns until told to stop. Raises: Closed when the port is."""

    def __init__(
        self, worker: SlotContext, make_trainer: Callable[[Plan], Trainer] = make_trainer
    ) -> None:
        self._worker = worker
        self._port = worker.port
        self._trainers = PerPlan(make_trainer)
        self._devices = PerPlan(Devices)
        self._failures = 0
        self._pause_s = 0.0
        self._free_since = time.perf_counter()

    def run(self) -> None:
        """Take turns."""
        while not self._worker.stop.is_set():
            delivery = self._port.receive_assignment(_LOOK_UP_S)
            if delivery is not None:
                self._turn(delivery)

    def _turn(self, delivery: Delivery) -> None:
        try:
            assignment = delivery.envelope.message()
        except DecodeError as error:
            self._worker.say(f"dropped a turn: {error}")
            self._port.ack(delivery)
            return
        if not isinstance(assignment, Assignment):
            self._port.ack(delivery)
            return
        self._pause_s = 0.0
        answer = self._answer(assignment)
        if answer is not None:
            answer = self._submit(assignment, answer)
        elif self._worker.stop.is_set():
            return  # not acked: it goes back to the broker
        self._port.ack(delivery)
        self._worker.on_turn(answer)
        self._rest()

    def _answer(self, assignment: Assignment) -> Message | None:
        """What to send; None where there is nothing to be said."""
        if assignment.kind == "initialise":
            return self._initialise(assignment)
        model = self._model_for(assignment)
        if model is None:
            return None
        try:
            devices = self._devices.of(model.plan)
        except UserError as error:  # a CSV that this worker does not have
            return self._failed(assignment, model.version, error)
        return self._train_on_device(assignment, model, devices)

    def _initialise(self, assignment: Assignment) -> Message:
        try:
            assert assignment.plan is not None
            weights = self._trainers.of(assignment.plan).initial()
        except Exception as error:
            return self._failed(assignment, 0, error)
        return initial_update(assignment, self._worker.worker_id, weights)

    def _model_for(self, assignment: Assignment) -> GlobalModel | None:
        """The model to train, waiting for it where it has not come yet; None to drop the turn."""
        envelope = self._port.newest_model()
        while not self._worker.stop.is_set():
            model = read_model(envelope)
            match verdict(assignment, model):
                case "train":
                    return model
                case "drop":
                    return None
            newest = order(envelope.headers) if envelope else None
            envelope = self._port.wait_model(newest, _LOOK_UP_S) or envelope
        return None

    def _train_on_device(
        self, assignment: Assignment, model: GlobalModel, devices: Devices
    ) -> Message | None:
        """The turn as the client's device lives it; None where its update is for nobody."""
        outcome = devices.outcome(assignment.client, assignment.turn)
        now = max(0.0, time.time() - model.run.run_started / 1000)
        self._wait(devices.next_start(assignment.client, now) - now)
        newest = self._model_for(assignment)  # a newer one may have come meanwhile
        if newest is None:
            return None
        size = payload_bytes(newest.tensors)
        self._wait(outcome.download_s(size))
        if outcome.lost_at == "before_training":
            return None
        answer = self._train(assignment, newest, outcome)
        if outcome.lost_at != "after_training":
            sent = payload_bytes(answer.tensors) if isinstance(answer, ClientUpdate) else 0
            self._wait(outcome.upload_s(sent))
        self._pause_s = outcome.pause_s
        lost = outcome.lost_at is not None or self._is_over(assignment.run)
        return None if lost and not isinstance(answer, ClientFailed) else answer

    def _train(self, assignment: Assignment, model: GlobalModel, outcome: DeviceOutcome) -> Message:
        try:
            trainer = self._trainers.of(model.plan)
            client, turn = assignment.client, assignment.turn
            state = self._state(assignment) if model.plan.keeps_state else None
            trained = trainer.train(model.tensors, client, turn, outcome.epochs, state)
            self._wait(outcome.train_s(trained.examples) - trained.seconds)
            update = make_update(
                assignment,
                model,
                trained,
                self._worker.worker_id,
                self._slot_s(),
                self._worker.take_received(),
            )
            update, memory = outgoing(update, model.plan, state, np.random.default_rng)
            if model.plan.keeps_state:
                after = assignment.after or ""
                name = state_name(after, turn, model.version)
                kept = trained.state | memory
                self._worker.states.save(model.run.run_id, client, name, kept, after)
        except Exception as error:  # whatever a task raises costs one turn, never the worker
            return self._failed(assignment, model.version, error)
        self._failures = 0
        return update

    def _state(self, assignment: Assignment) -> Tensors | None:
        client, after = assignment.client, assignment.after or ""
        state = self._worker.states.load(assignment.run.run_id, client, after)
        if state is None:
            self._worker.say(
                f"client {client} has trained before, but what it kept is not here: it starts "
                "anew (workers that share a --state folder find each other's)"
            )
        return state

    def _failed(self, assignment: Assignment, base_version: int, error: Exception) -> ClientFailed:
        self._failures += 1
        failed = failed_update(assignment, self._worker.worker_id, base_version, error)
        self._worker.say(f"client {assignment.client}: {failed.reason}")
        return failed

    def _submit(self, assignment: Assignment, answer: Message) -> Message:
        """What was sent in the end."""
        try:
            self._send(Envelope.of(answer))
        except MessageTooLarge as error:
            answer = self._failed(assignment, 0, error)
            self._send(Envelope.of(answer))
        return answer

    def _send(self, envelope: Envelope) -> None:
        self._worker.journal.sending(envelope)
        self._worker.submit(envelope)
        self._worker.journal.confirmed(envelope)

    def _slot_s(self) -> float:
        now = time.perf_counter()
        passed, self._free_since = now - self._free_since, now
        return passed

    def _is_over(self, run: Run) -> bool:
        """Whether this run has ended, or another leads now: what was trained is for nobody."""
        model = read_model(self._port.newest_model())
        if model is None:
            return False
        same = model.run.run_id == run.run_id
        return model.final if same else leadership(model.run) > leadership(run)

    def _rest(self) -> None:
        rest = min(_LONGEST_REST_S, _REST_S * 2**self._failures) if self._failures else 0.0
        self._wait(max(rest, self._pause_s))

    def _wait(self, seconds: float) -> None:
        if seconds > 0:
            self._worker.stop.wait(seconds)
