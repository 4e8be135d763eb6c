"""One slot of a worker: a thread with one compiled trainer, which takes turns.

It drives a turn (``fluffle.worker.services.turn``) in real time, and acks it after its end: what is
sent has been confirmed by then. A worker that is told to stop before it has an answer does not ack,
and the turn goes back to the broker.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
)
from fluffle.schemas.errors import contained
from fluffle.schemas.messages import order
from fluffle.schemas.steps import Noise
from fluffle.worker.services.answers import (
    Account,
    failed_update,
    initial_update,
    load_state,
    make_update,
    save_state,
    train,
)
from fluffle.worker.services.client_state import ClientStates
from fluffle.worker.services.journal import Journal
from fluffle.worker.services.returned import ReturnedTurns
from fluffle.worker.services.shutdown import Shutdown
from fluffle.worker.services.simulated import SimulatedDevices
from fluffle.worker.services.turn import (
    Available,
    Begin,
    Decorator,
    Fetch,
    Initialise,
    Pause,
    Report,
    Step,
    Stopped,
    Submit,
    Train,
    Wait,
    drive,
    is_newer,
    is_too_old,
    leadership,
    turn_of,
    undecorated,
)
from fluffle.worker.training.interrupt import TrainingStopped
from fluffle.worker.training.per_plan import PerPlan, make_slot_trainer

if TYPE_CHECKING:
    from fluffle.worker.training.trained import LocalTrainer

_log = logging.getLogger(__name__)

_LOOK_UP_S = 0.5
#: How often a slot that rests looks whether anybody still wants it to, in seconds.
_PAUSE_LOOK_UP_S = 2.0
#: How often a training that takes a simulated device's time looks whether it is still wanted.
_STOP_LOOK_UP_S = 0.5
#: After failures in a row a slot rests, so that a broken worker does not eat all turns.
_REST_S = 0.1
_LONGEST_REST_S = 30.0


@dataclass(frozen=True, kw_only=True)
class SlotContext:
    """What the slots of a worker share."""

    worker_id: str
    port: WorkerPort
    shutdown: Shutdown
    states: ClientStates
    journal: Journal = field(default_factory=Journal)
    returned: ReturnedTurns = field(default_factory=ReturnedTurns)
    #: Is told what a turn brought; None where it was for nobody any more, or was lost.
    on_turn: Callable[[Message | None], None] = lambda answer: None
    #: Bytes of models received since somebody asked last.
    take_received: Callable[[], int] = lambda: 0
    #: Whether turns live the devices that the plan describes.
    simulate_devices: bool = False

    @property
    def stop(self) -> threading.Event:
        """Set once the worker shall leave."""
        return self.shutdown.told


class Slot:
    """Takes turns until told to stop. Raises: Closed when the port is."""

    def __init__(
        self, worker: SlotContext, make_trainer: Callable[[Plan], LocalTrainer] = make_slot_trainer
    ) -> None:
        self._worker = worker
        self._port = worker.port
        self._trainers = PerPlan(make_trainer)
        self._about: Decorator = SimulatedDevices() if worker.simulate_devices else undecorated
        self._failures = 0
        #: Whether the turn under way was given to somebody before.
        self._came_back = False
        self._pause_s = 0.0
        self._free_since = time.perf_counter()

    def run(self) -> None:
        """Take turns."""
        while not self._worker.stop.is_set():
            delivery = self._port.receive_assignment(_LOOK_UP_S)
            if delivery is not None:
                self._take(delivery)

    def _take(self, delivery: Delivery) -> None:
        try:
            assignment = delivery.envelope.message()
        except DecodeError as error:
            _log.warning(f"dropped a turn: {error}")
            self._port.ack(delivery)
            return
        if not isinstance(assignment, Assignment):
            self._port.ack(delivery)
            return
        done = self._worker.returned.begin(assignment, delivery)
        if done is not None:
            _log.info(
                f"client {assignment.client}'s turn has come back while this worker %s",
                "had answered it" if done else "trains it",
            )
            self._ack(done)
            return
        self._pause_s = 0.0
        self._came_back = delivery.delivery_count > 0
        sent = None
        try:
            sent = self._drive(assignment)
        finally:
            deliveries = self._worker.returned.end(assignment, sent is not None)
        if sent is None and self._worker.stop.is_set():
            return  # not acked: it goes back to the broker
        self._ack(deliveries)
        self._worker.on_turn(sent)
        self._rest(assignment.run)

    def _ack(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            self._port.ack(delivery)

    def _drive(self, assignment: Assignment) -> Message | None:
        """What was sent in the end; None where there was nothing to be said."""
        sent: list[Message] = []

        def do(step: Step) -> Any:
            match step:
                case Initialise(_, plan):
                    return self._initialise(assignment, plan)
                case Fetch(seen):
                    return self._fetch(seen)
                case Available(next_start):
                    return self._wait_for_device(next_start, assignment.run)
                case Wait(seconds):
                    self._wait(seconds)
                case Begin():
                    pass
                case Train():
                    return self._train(step)
                case Pause(seconds):
                    self._pause_s = seconds
                case Submit(update):
                    if update.sends == "initial" or not self._is_over(assignment.run):
                        sent.append(self._submit(assignment, update))
                case Report(error, base_version):
                    sent.append(self._report(assignment, base_version, error))

        drive(self._about(turn_of(assignment), assignment), do)
        return sent[0] if sent else None

    # ---- steps

    def _initialise(self, assignment: Assignment, plan: Plan) -> ClientUpdate | BaseException:
        try:
            weights = self._trainers.of(plan).initial()
        except BaseException as error:
            return contained(error)
        return initial_update(assignment, self._worker.worker_id, weights)

    def _fetch(self, seen: GlobalModel | None) -> GlobalModel | None:
        envelope = self._port.newest_model()
        while not self._worker.stop.is_set():
            model = envelope.model() if envelope else None
            if model is not None and is_newer(model, seen):
                return model
            if model is None and envelope is not None:
                self._port.forget_model(envelope)
                envelope = None
            newest = order(envelope.headers) if envelope else None
            envelope = self._port.wait_model(newest, _LOOK_UP_S) or envelope
        return None

    def _wait_for_device(self, next_start: Callable[[float], float], run: Run) -> bool:
        now = max(0.0, time.time() - run.run_started / 1000)
        start = next_start(now)
        self._wait(start - now)
        return start < math.inf

    def _train(self, step: Train) -> ClientUpdate | BaseException | Stopped:
        try:
            trainer = self._trainers.of(step.model.plan)
            state = load_state(self._worker.states, step)
            if state is None and step.model.plan.keeps_state:
                self._say_lost(step.assignment)
            if self._came_back and any(isinstance(s, Noise) for s in step.model.plan.update or ()):
                self._say_noise_again(step.assignment)
            trained = train(step, trainer, state, lambda: self._is_too_old(step.model))
            self._live_on(step.takes_s(trained.examples) - trained.seconds, step.model)
            account = Account(self._worker.worker_id, self._slot_s(), self._worker.take_received())
            update, kept = make_update(step, trained, state, account, np.random.default_rng)
            save_state(self._worker.states, step, kept)
        except TrainingStopped:
            _log.info(
                f"client {step.assignment.client}'s training of version {step.model.version} "
                "stopped: it has become too old"
            )
            return Stopped()
        except BaseException as error:  # whatever a task raises costs one turn, never the worker
            return contained(error)
        self._failures = 0
        return update

    def _live_on(self, seconds: float, base: GlobalModel) -> None:
        """A training that takes longer on its client's device. Raises: TrainingStopped."""
        while base.plan.stops_beyond is not None:
            if self._is_too_old(base):
                raise TrainingStopped
            if seconds <= _STOP_LOOK_UP_S or self._worker.stop.is_set():
                break
            self._wait(_STOP_LOOK_UP_S)
            seconds -= _STOP_LOOK_UP_S
        self._wait(seconds)

    def _is_too_old(self, base: GlobalModel) -> bool:
        """Whether the newest model says that nobody wants trainings of this one any more."""
        newest = self._port.newest_model()
        if newest is None:
            return False
        run_id, version = newest.headers.get("run_id"), newest.headers.get("version")
        known = isinstance(run_id, str) and isinstance(version, int)
        return known and is_too_old(base, str(run_id), int(version or 0))

    def _say_noise_again(self, assignment: Assignment) -> None:
        _log.warning(
            f"client {assignment.client}'s turn comes again, and its noise is drawn anew: if the "
            "first answer arrived, two of them are known, which reveal more than one"
        )

    def _say_lost(self, assignment: Assignment) -> None:
        client = assignment.client
        if self._came_back or self._is_past(assignment.run):
            # Its client may be turns ahead, and have dropped what this one goes on from.
            _log.info(f"client {client}'s turn comes again; it may have been answered before")
            return
        _log.warning(
            f"client {client} has trained before, but what it kept is not here: it starts anew "
            "(workers that share a --state folder find each other's)"
        )

    def _submit(self, assignment: Assignment, update: ClientUpdate) -> Message:
        """What was sent in the end."""
        try:
            self._send(Envelope.of(update))
        except MessageTooLarge as error:
            return self._report(assignment, 0, error)
        return update

    def _report(
        self, assignment: Assignment, base_version: int, error: BaseException
    ) -> ClientFailed:
        self._failures += 1
        failed = failed_update(assignment, self._worker.worker_id, base_version, error)
        _log.warning(f"client {assignment.client}: {failed.reason}")
        self._send(Envelope.of(failed))
        return failed

    def _send(self, envelope: Envelope) -> None:
        self._worker.journal.sending(envelope)
        self._worker.shutdown.submit(envelope)
        self._worker.journal.confirmed(envelope)

    def _slot_s(self) -> float:
        now = time.perf_counter()
        passed, self._free_since = now - self._free_since, now
        return passed

    def _is_over(self, run: Run) -> bool:
        """Whether this run has ended, or another leads now: what was trained is for nobody."""
        model = self._newest_model()
        if model is None:
            return False
        same = model.run.run_id == run.run_id
        return model.final if same else leadership(model.run) > leadership(run)

    def _newest_model(self) -> GlobalModel | None:
        newest = self._port.newest_model()
        return newest.model() if newest else None

    def _rest(self, run: Run) -> None:
        """Between turns; a pause is its run's, and ends where another leads or the run is over."""
        rest = min(_LONGEST_REST_S, _REST_S * 2**self._failures) if self._failures else 0.0
        self._wait(rest)
        left = self._pause_s - rest
        while left > 0 and not self._worker.stop.is_set():
            if left > _PAUSE_LOOK_UP_S and self._is_past(run):
                return
            self._wait(min(left, _PAUSE_LOOK_UP_S))
            left -= _PAUSE_LOOK_UP_S

    def _is_past(self, run: Run) -> bool:
        """Whether turns of this run's leader are no more: any run is over, or another leads."""
        model = self._newest_model()
        return model is not None and (model.final or leadership(model.run) > leadership(run))

    def _wait(self, seconds: float) -> None:
        if 0 < seconds < math.inf:
            self._worker.stop.wait(min(seconds, threading.TIMEOUT_MAX))
