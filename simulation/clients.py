"""Clients under the virtual clock: drives their turns by events, and has a pool do the training.

A turn (``fluffle.worker.services.turn``) runs ahead of the clock in a time of its own: what it
waits for only adds up, and an event is scheduled where it needs the world, or a training's result::

    assigned ─(rest, availability)─> event: it fetches the newest model, its base
       begin ─(download)─(training)─> event: the loop waits for the real result here
     trained ─(upload)─> event: submitted to the updates queue
    a newer version makes the base too old ─> no more of that training: the turn goes on now
    lost turns end in an event "lost", without real training: nobody would see its result
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from fluffle.broker import Delivery, WorkerPort
from fluffle.schemas import (
    Assignment,
    ClientFailed,
    ClientUpdate,
    GlobalModel,
    Message,
    Plan,
    UserError,
)
from fluffle.schemas.codec import encoded_size
from fluffle.schemas.errors import contained
from fluffle.simulation.events import EventLog, Events
from fluffle.simulation.pool import Pool
from fluffle.simulation.trainings import WORKER, Begun, Trainings, Waited
from fluffle.worker.devices import DeviceOutcome
from fluffle.worker.services.answers import (
    failed_update,
    initial_update,
    payload_bytes,
    save_state,
)
from fluffle.worker.services.client_state import ClientStates
from fluffle.worker.services.outgoing import upload_bytes
from fluffle.worker.services.simulated import SimulatedDevices, end_of
from fluffle.worker.services.turn import (
    Available,
    Begin,
    Fetch,
    Initialise,
    Pause,
    Report,
    Stopped,
    Submit,
    Train,
    Turn,
    Wait,
    is_newer,
    is_too_old,
    turn_of,
)
from fluffle.worker.tasks.registry import load_task, trying
from fluffle.worker.tasks.task import StreamedTask
from fluffle.worker.training.per_plan import PerPlan

if TYPE_CHECKING:
    from fluffle.worker.tasks.task import Task
    from fluffle.worker.training.trained import LocalTrainer


@dataclass(slots=True)
class InFlight:
    """A client's turn on its way through the events."""

    delivery: Delivery
    assignment: Assignment
    steps: Turn
    #: Its own time, which runs ahead of the clock's.
    at: float
    #: Whether it has waited for anything since its last event.
    waited: bool = False
    #: Its device's start, once there was one.
    begun: Begun | None = None
    answered: bool = False

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.at += seconds
        self.waited = True


@dataclass(frozen=True, slots=True)
class AtWork:
    """A training whose result is not due yet."""

    turn: InFlight
    base: GlobalModel
    #: When it is due, as ``Events`` numbers it.
    event: int
    training: Waited


class Clients:
    """All clients of a run, and whoever works for them."""

    def __init__(
        self,
        port: WorkerPort,
        events: Events,
        pool: Pool,
        log: EventLog,
        states: ClientStates,
        *,
        patience_s: float,
        submit: Callable[[Message], None],
        lost: Callable[[str, int, int], None],
    ) -> None:
        """
        pool: its threads' trainers are ``PerPlan``.
        patience_s: an assignment expires after this time in its queue.
        lost: is told of turns without an update: where it was lost, bytes up and down.
        """
        self._port = port
        self._events = events
        self._pool = pool
        self._log = log
        self._states = states
        self._patience_s = patience_s
        self._submit = submit
        self._tell_lost = lost
        self._on_device = SimulatedDevices()
        self._trainings = Trainings(pool, states)
        self._tasks = PerPlan(_countable_task)
        #: When each client's device is free again: it does one thing at a time.
        self._free_at: dict[str, float] = {}
        #: Who is at work on a training that may be stopped.
        self._training: dict[str, AtWork] = {}
        #: The newest one; None before version 0.
        self.model: GlobalModel | None = None

    def free_at(self, client: str) -> float:
        """When this client's device is free, as far as it has turns."""
        return self._free_at.get(client, 0.0)

    def give(self, model: GlobalModel) -> None:
        """A newer model; trainings whose base it makes too old stop now."""
        self.model = model
        for client in [c for c in self._training if self.will_stop(c, model.version)]:
            at_work = self._training.pop(client)
            turn = at_work.turn
            self._events.cancel(at_work.event)
            at_work.training.abandon()
            turn.at = self._free_at[client] = self._events.now
            if turn.begun is not None:
                self._tell_lost("stopped", 0, turn.begun.download)
                turn.begun = None
            version, number = at_work.base.version, turn.assignment.turn
            self._log.note("stopped", client=client, turn=number, version=version)
            self._go_on(turn, Stopped())

    def will_stop(self, client: str, version: int) -> bool:
        """Whether this client's training stops once there is this version."""
        at_work = self._training.get(client)
        return at_work is not None and is_too_old(
            at_work.base, at_work.turn.assignment.run.run_id, version
        )

    def take(self, delivery: Delivery) -> None:
        """A turn begins now."""
        assignment = delivery.envelope.message()
        if not isinstance(assignment, Assignment):
            self._port.ack(delivery)
            return
        steps = self._on_device(turn_of(assignment), assignment)
        self._go_on(InFlight(delivery, assignment, steps, self._events.now), None)

    def _go_on(self, turn: InFlight, reply: Any) -> None:
        """Do a turn's steps, up to the next event or the end."""
        while True:
            try:
                step = turn.steps.send(reply)
            except StopIteration:
                self._end(turn)
                return
            reply = None
            match step:
                case Fetch(seen):  # models come before their turns here: there is no other
                    newer = self.model is not None and is_newer(self.model, seen)
                    reply = self.model if newer else None
                case Wait(seconds):
                    turn.wait(seconds)
                case Begin(model, outcome):
                    self._begin(turn, model, outcome)
                case Pause():
                    pass  # the device is not free: see _begin
                case Available(next_start):
                    free = self.free_at(turn.assignment.client)
                    start = next_start(max(turn.at, free))
                    if start < turn.at + self._patience_s:
                        self._later(turn, start, lambda: True)
                        return
                    reply = False  # it expires in the queue
                case Initialise():
                    self._initialise(turn, step)
                    return
                case Train(assignment, model):
                    seconds = step.takes_s(self._examples(model.plan, assignment.client))
                    turn.wait(seconds)
                    if step.needed:
                        self._train(turn, step, seconds)
                        return
                case Submit() | Report():
                    if turn.waited:
                        self._later(turn, turn.at, partial(self._answer, turn, step))
                        return
                    self._answer(turn, step)

    def _later(self, turn: InFlight, at: float, reply: Callable[[], Any]) -> int:
        """The turn goes on at this time, with this reply; its number among the events."""
        turn.at, turn.waited = at, False
        return self._events.at(at, lambda: self._go_on(turn, reply()))

    # ---- steps

    def _begin(self, turn: InFlight, model: GlobalModel, outcome: DeviceOutcome) -> None:
        client, number = turn.assignment.client, turn.assignment.turn
        download, upload = payload_bytes(model.tensors), upload_bytes(model.plan, model.tensors)
        turn.begun = Begun(turn.at, outcome, download, upload)
        self._free_at[client] = end_of(
            outcome,
            download=download,
            upload=upload,
            examples=self._examples(model.plan, client),
            at=turn.at,
        )
        self._log.note("start", client=client, turn=number, version=model.version)

    def _examples(self, plan: Plan, client: str) -> int:
        return trying(task := self._tasks.of(plan), lambda: _count(task, client))

    def _initialise(self, turn: InFlight, step: Initialise) -> None:
        def work(trainers: PerPlan[LocalTrainer]) -> ClientUpdate:
            return initial_update(step.assignment, WORKER, trainers.of(step.plan).initial())

        job = self._pool.submit(turn.at, work)

        def built() -> ClientUpdate | BaseException:
            try:
                return self._pool.wait(job)
            except BaseException as error:
                return contained(error)

        self._later(turn, turn.at, built)

    def _train(self, turn: InFlight, step: Train, seconds: float) -> None:
        """In a slot's thread, long before its time maybe. What the client goes on from was saved
        before its turn was issued, so there is nothing to wait for.
        """
        trained_at = turn.at
        training = self._trainings.submit(step, trained_at, seconds, turn.begun)

        def trained() -> ClientUpdate | BaseException:
            self._training.pop(step.assignment.client, None)
            try:
                update, kept = training.wait()
                save_state(self._states, step, kept)
            except BaseException as error:  # whatever a task raises costs one turn, not the run
                return contained(error)
            return update

        event = self._later(turn, trained_at, trained)
        if step.model.plan.stops_beyond is not None:
            client = step.assignment.client
            self._training[client] = AtWork(turn, step.model, event, training)

    def _answer(self, turn: InFlight, step: Submit | Report) -> None:
        answer: ClientUpdate | ClientFailed
        match step:
            case Submit(update):
                answer = update
            case Report(error, base_version):
                answer = failed_update(turn.assignment, WORKER, base_version, error)
                if turn.begun is not None:
                    self._tell_lost("failed", encoded_size(answer), turn.begun.download)
        turn.answered = True
        if turn.begun is not None:
            self._log.note(
                "arrived",
                client=answer.client,
                turn=answer.turn,
                version=answer.base_version,
                took=round(self._events.now - turn.begun.at, 6),
            )
        self._submit(answer)

    def _end(self, turn: InFlight) -> None:
        if turn.answered or turn.begun is None:
            self._port.ack(turn.delivery)
        else:
            self._events.at(turn.at, partial(self._lost, turn, turn.begun))

    def _lost(self, turn: InFlight, begun: Begun) -> None:
        client, number = turn.assignment.client, turn.assignment.turn
        where = begun.outcome.lost_at
        self._log.note("lost", client=client, turn=number, where=where)
        sent = begun.upload if where == "upload" else 0
        self._tell_lost(f"lost_{where}", sent, begun.download)
        self._port.ack(turn.delivery)


def _countable_task(plan: Plan) -> Task:
    """Raises: UserError where the task does not say how many examples a client has."""
    task = load_task(plan)
    trying(task, lambda: _count(task, "0"))
    return task


def _count(task: Task, client: str) -> int:
    """How many examples a client has. Raises: UserError where its task does not say."""
    if not isinstance(task, StreamedTask):
        return len(task.client_indices(client))
    if (count := task.examples(client)) is None:
        raise UserError(
            "the virtual clock takes a training's time from how many examples a client has, and "
            f"{type(task).__name__} does not say: give it a method examples(client), or use the "
            "real clock"
        )
    return count
