"""A run under a virtual clock: a discrete-event loop around the production services.

The aggregator's service, the embedded broker, the messages, the strategies and the trainers are
those of any run. Only time is simulated: the loop executes what is due, then lets the clock jump.

A turn of a client, as events::

    assigned ─(rest, availability)─> start: the newest model is its base
       start ─(download)─(training)─> trained: the loop waits for the real result here
     trained ─(upload)─> arrived: submitted to the updates queue
    lost turns end in "lost", without real training: nobody would see its result

Events of the same time happen in the order in which they were scheduled, and those before the
aggregator's timers. Which slot trains what never shows: same file and seed, same bytes.
"""

from __future__ import annotations

import dataclasses
import heapq
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fluffle.aggregator.service import AggregatorService
from fluffle.broker import Delivery, Envelope
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
    Tensors,
    UserError,
)
from fluffle.schemas.messages import order, state_name
from fluffle.simulation.pool import Job, Pool
from fluffle.worker.devices import DeviceOutcome, Devices
from fluffle.worker.services.client_state import ClientStates
from fluffle.worker.services.evaluator import Cadence
from fluffle.worker.services.outgoing import noise_of_turn, outgoing, upload_bytes
from fluffle.worker.services.turn import (
    failed_update,
    initial_update,
    make_update,
    payload_bytes,
    verdict,
)
from fluffle.worker.tasks.task import StreamedTask
from fluffle.worker.training.per_plan import make_trainer

if TYPE_CHECKING:
    from fluffle.worker.tasks.task import Task
    from fluffle.worker.training.trainer import Trainer

WORKER = "virtual"
_JSON = json.JSONEncoder(separators=(",", ":"))
#: Every device is a client of its own: as many turns are taken as there are.
_NO_LIMIT = 2**31


class Clock:
    """Virtual seconds since the run began."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(slots=True)
class Turn:
    """A client's turn on its way through the events."""

    delivery: Delivery
    assignment: Assignment
    issued: float
    outcome: DeviceOutcome | None = None
    model: GlobalModel | None = None
    started: float = 0.0
    train_s: float = 0.0
    job: Job[Any] | None = None


class VirtualRun:
    """One experiment under the virtual clock, in one process."""

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        *,
        run_id: str,
        slots: int,
        states: ClientStates | None = None,
        code: Path | None = None,
        on_status: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.clock = Clock()
        broker = EmbeddedBroker(self.clock)
        self._aggregator = broker.aggregator()
        self.service = AggregatorService(
            experiment,
            self._aggregator,
            folder,
            run_id=run_id,
            code=code,
            clock_name="virtual",
            clock=self.clock,
            on_status=on_status,
        )
        self._experiment = experiment
        self._port = broker.worker(WORKER, _NO_LIMIT)
        self._slots = slots
        self._pool: Pool | None = None
        self._devices: Devices | None = None
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        #: Whether the last event gave the services anything to do.
        self._stirred = True
        #: When each client's device is free again: it does one thing at a time.
        self._free_at: dict[str, float] = {}
        self._model: GlobalModel | None = None
        self._task: Task | None = None
        self._model_order: tuple[int, int, int, int] | None = None
        self._cadence = Cadence()
        self._states = states or ClientStates()
        self._stop = threading.Event()
        self._folder = folder
        self._log: TextIO | None = None

    def stop(self) -> None:
        """Stop soon. A run under the virtual clock starts over. From any thread."""
        self._stop.set()

    @property
    def busy_s(self) -> float:
        """Real seconds of training so far, all slots together."""
        return self._pool.busy_s if self._pool else 0.0

    def run(self) -> str:
        """Until the end: "finished", "failed", "aborted", or "stopped". Raises: UserError."""
        self._aggregator.lead(0.0)
        self.service.begin()
        self._log = (self._folder / "events.jsonl").open("w", encoding="utf-8")
        try:
            self._settle()
            while self.service.outcome is None and not self._stop.is_set():
                self._advance()
                if self._stirred:
                    self._settle()
        finally:
            self._log.close()
            self.service.close()
            if self._pool is not None:
                self._pool.close()
            self._states.close()
        return self.service.outcome or "stopped"

    # ---- the loop

    def _advance(self) -> None:
        """Let the clock jump to what is due next, and do it."""
        timer = self.service.call_at
        self._stirred = True
        if self._events and self._events[0][0] <= timer:
            at, _, act = heapq.heappop(self._events)
            self.clock.now = max(self.clock.now, at)
            self._stirred = False
            act()
        elif timer == float("inf"):
            raise UserError(
                "nothing can happen any more: no client will ever be available "
                "(devices.availability), and there is no deadline"
            )
        else:
            self.clock.now = max(self.clock.now, timer)

    def _settle(self) -> None:
        """Everything that needs no time: messages, timers that are due, new turns and models."""
        busy = True
        while busy:
            busy = False
            while self.service.pump(0.0):
                pass
            self._look_at_model()
            while (delivery := self._port.receive_assignment(0.0)) is not None:
                busy = True
                self._take(delivery)

    def _at(self, time_: float, act: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (time_, self._number, act))

    def _note(self, event: str, **fields: Any) -> None:
        assert self._log is not None
        line = {"at": round(self.clock.now, 6), "event": event, **fields}
        self._log.write(_JSON.encode(line) + "\n")

    # ---- models

    def _look_at_model(self) -> None:
        envelope = self._port.newest_model()
        if envelope is None or (newest := order(envelope.headers)) == self._model_order:
            return
        model = envelope.message()
        assert isinstance(model, GlobalModel)
        self._model, self._model_order = model, newest
        self._note("version", version=model.version, updates=model.updates, final=model.final)
        if self._cadence.due(model):
            job = self._pool_for(model.plan).submit(
                self.clock.now, lambda trainer: trainer.evaluate(model.tensors)
            )
            self._at(self.clock.now, lambda: self._evaluated(model, job))

    def _evaluated(self, model: GlobalModel, job: Job[tuple[dict[str, float], int]]) -> None:
        metrics, examples = self._pool_for(model.plan).wait(job)
        self._note("evaluated", version=model.version, **metrics)
        self._submit(
            Evaluation(
                run=model.run,
                version=model.version,
                worker=WORKER,
                metrics=metrics,
                examples=examples,
            )
        )

    # ---- turns

    def _take(self, delivery: Delivery) -> None:
        assignment = delivery.envelope.message()
        assert isinstance(assignment, Assignment)
        turn = Turn(delivery, assignment, self.clock.now)
        if assignment.kind == "initialise":
            assert assignment.plan is not None
            job = self._pool_for(assignment.plan).submit(
                self.clock.now, lambda trainer: trainer.initial()
            )
            self._at(self.clock.now, lambda: self._initialised(turn, job))
            return
        assert self._model is not None
        turn.outcome = self._devices_for(self._model.plan).outcome(
            assignment.client, assignment.turn
        )
        ready = max(self.clock.now, self._free_at.get(assignment.client, 0.0))
        start = self._devices_for(self._model.plan).next_start(assignment.client, ready)
        patience = self._experiment.participation.assignment_deadline_s
        if start >= turn.issued + patience:
            self._port.ack(delivery)  # it expires in the queue
        else:
            self._at(start, lambda: self._start(turn))

    def _initialised(self, turn: Turn, job: Job[Tensors]) -> None:
        assert turn.assignment.plan is not None
        try:
            weights = self._pool_for(turn.assignment.plan).wait(job)
            self._submit(initial_update(turn.assignment, WORKER, weights))
        except Exception as error:
            self._submit(failed_update(turn.assignment, WORKER, 0, error))
        self._port.ack(turn.delivery)

    def _start(self, turn: Turn) -> None:
        model, outcome = self._model, turn.outcome
        assert model is not None
        assert outcome is not None
        if verdict(turn.assignment, model) != "train":
            self._port.ack(turn.delivery)
            return
        turn.model, turn.started = model, self.clock.now
        client, number = turn.assignment.client, turn.assignment.turn
        size = payload_bytes(model.tensors)
        pool = self._pool_for(model.plan)
        fetched = self.clock.now + outcome.download_s(size)
        turn.train_s = outcome.train_s(self._examples(model.plan, client))
        trained = fetched + turn.train_s
        sent = upload_bytes(model.plan, model.tensors)
        self._free_at[client] = trained + outcome.upload_s(sent) + outcome.pause_s
        self._note("start", client=client, turn=number, version=model.version)
        match outcome.lost_at:
            case "before_training":
                self._at(fetched, lambda: self._lost(turn))
            case "after_training":
                self._at(trained, lambda: self._lost(turn))
            case "upload":
                self._at(trained + outcome.upload_s(sent), lambda: self._lost(turn))
            case None:
                turn.job = pool.submit(
                    trained, lambda trainer: self._update(turn, trainer, trained)
                )
                self._at(trained, lambda: self._trained(turn))

    def _update(self, turn: Turn, trainer: Trainer, at: float) -> tuple[ClientUpdate, Tensors]:
        """Train: the update, and what the client keeps for its next turn.

        In a slot's thread, long before its time maybe: ``at`` is the virtual one. What the client
        goes on from was saved before its turn was issued, so there is nothing to wait for.
        """
        model, outcome = turn.model, turn.outcome
        assert model is not None
        assert outcome is not None
        client, number, state = turn.assignment.client, turn.assignment.turn, None
        if model.plan.keeps_state:
            after = turn.assignment.after or ""
            state = self._states.load(model.run.run_id, client, after)
        trained = trainer.train(model.tensors, client, number, outcome.epochs, state)
        trained = dataclasses.replace(trained, seconds=turn.train_s)
        size = payload_bytes(model.tensors)
        update = make_update(turn.assignment, model, trained, WORKER, 0.0, size)
        noise = partial(noise_of_turn, model.plan, update)
        update, memory = outgoing(update, model.plan, state, noise)
        took_s = at + outcome.upload_s(payload_bytes(update.tensors)) - turn.started
        return update.model_copy(update={"slot_s": took_s}), trained.state | memory

    def _trained(self, turn: Turn) -> None:
        model, outcome, job = turn.model, turn.outcome, turn.job
        assert model is not None
        assert outcome is not None
        assert job is not None
        answer: ClientUpdate | ClientFailed
        try:
            update, state = self._pool_for(model.plan).wait(job)
            upload_s, answer = outcome.upload_s(payload_bytes(update.tensors)), update
            if model.plan.keeps_state:
                after = turn.assignment.after or ""
                name = state_name(after, update.turn, model.version)
                self._states.save(model.run.run_id, update.client, name, state, after)
        except Exception as error:
            upload_s = 0.0
            answer = failed_update(turn.assignment, WORKER, model.version, error)
        turn.job = turn.model = None
        self._at(self.clock.now + upload_s, lambda: self._arrived(turn, answer))

    def _arrived(self, turn: Turn, answer: ClientUpdate | ClientFailed) -> None:
        self._note(
            "arrived",
            client=answer.client,
            turn=answer.turn,
            version=answer.base_version,
            took=round(self.clock.now - turn.started, 6),
        )
        self._submit(answer)
        self._port.ack(turn.delivery)

    def _lost(self, turn: Turn) -> None:
        assert turn.outcome is not None
        assignment = turn.assignment
        self._note(
            "lost", client=assignment.client, turn=assignment.turn, where=turn.outcome.lost_at
        )
        turn.model = None
        self._port.ack(turn.delivery)

    def _submit(self, message: Message) -> None:
        self._port.submit(Envelope.of(message))
        self._stirred = True

    # ---- what a plan needs

    def _pool_for(self, plan: Plan) -> Pool:
        if self._pool is None:
            self._pool = Pool(lambda: make_trainer(plan), self._slots)
        return self._pool

    def _devices_for(self, plan: Plan) -> Devices:
        if self._devices is None:
            self._devices = Devices(plan)
        return self._devices

    def _examples(self, plan: Plan, client: str) -> int:
        if self._task is None:
            from fluffle.worker.tasks.registry import load_task

            self._task = load_task(plan)
            if isinstance(self._task, StreamedTask):
                raise UserError(
                    "--clock virtual takes a training's time from how many examples a client has, "
                    "and a StreamedTask does not say: use the real clock, or a Task"
                )
        return len(self._task.client_indices(client))
