"""A run under a virtual clock: a discrete-event loop around the production services.

The aggregator's service, the embedded broker, the messages, the strategies, the turn and the
trainers are those of any run. Only time is simulated: the loop executes what is due, then lets the
clock jump. ``fluffle.simulation.clients`` says what the events of a turn are.

Events of the same time happen in the order in which they were scheduled, and those before the
aggregator's timers. Which slot trains what never shows: same file and seed, same bytes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fluffle.aggregator.service import AggregatorService
from fluffle.broker import Envelope
from fluffle.broker.embedded import EmbeddedBroker
from fluffle.helper.service import own_helper
from fluffle.schemas import Experiment, GlobalModel, Message, Plan, Tensors, UserError
from fluffle.schemas.experiment import DevicesTable
from fluffle.schemas.messages import order
from fluffle.simulation.clients import Clients
from fluffle.simulation.events import Clock, EventLog, Events
from fluffle.simulation.pool import Job, Pool
from fluffle.simulation.trainings import WORKER
from fluffle.worker.devices.availability import next_start
from fluffle.worker.services.answers import evaluation_of
from fluffle.worker.services.client_state import ClientStates
from fluffle.worker.services.evaluator import Cadence
from fluffle.worker.tasks.registry import load_task, trying
from fluffle.worker.training.per_plan import PerPlan, make_trainer

if TYPE_CHECKING:
    from fluffle.worker.training.trained import LocalTrainer

_log = logging.getLogger(__name__)

#: Every device is a client of its own: as many turns are taken as there are.
_NO_LIMIT = 2**31


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
        initial: Tensors | None = None,
        trainers: Callable[[Plan], LocalTrainer] = make_trainer,
    ) -> None:
        """trainers: makes one for each thread that trains; by default they are built anew."""
        self.clock = Clock()
        broker = EmbeddedBroker(self.clock)
        self._aggregator = broker.aggregator()
        #: It answers in no time; its masks are random, and cancel.
        self._helper = own_helper(experiment, broker, folder)
        self.service = AggregatorService(
            experiment,
            self._aggregator,
            folder,
            run_id=run_id,
            initial=initial,
            code=code,
            clock_name="virtual",
            clock=self.clock,
            arrival=self._arrival,
            helper_key=self._helper.public_key if self._helper else None,
        )
        self._experiment = experiment
        self._port = broker.worker(WORKER, _NO_LIMIT)
        self._slots = slots
        self._trainers = trainers
        self._events = Events(self.clock)
        #: Whether the last event gave the services anything to do.
        self._stirred = True
        self._model_order: tuple[int, int, int, int] | None = None
        self._cadence = Cadence()
        self._states = states or ClientStates()
        self._stop = threading.Event()
        self._folder = folder
        self._next_start = next_start(
            (experiment.devices or DevicesTable()).with_preset, experiment.experiment.seed
        )
        #: Clients that are away: until when, and when their device was going to be free.
        self._away: dict[str, tuple[float, float]] = {}
        self._clients: Clients | None = None
        #: Real seconds of training, all slots together; known at the end.
        self.busy_s = 0.0

    def stop(self) -> None:
        """Stop soon. A run under the virtual clock starts over. From any thread."""
        self._stop.set()

    def run(self) -> str:
        """Until the end: "finished", "failed", "aborted", or "stopped". Raises: UserError."""
        self._aggregator.lead(0.0)
        self.service.begin()
        log = EventLog(self._folder / "events.jsonl", self.clock)
        pool = Pool(lambda: PerPlan(self._trainers), self._slots)
        clients = self._clients = Clients(
            *(self._port, self._events, pool, log, self._states),
            patience_s=self._experiment.longest_turn_s,
            submit=self._submit,
            lost=self.service.record_lost,
        )
        try:
            self._settle(clients, pool, log)
            while self.service.outcome is None and not self._stop.is_set():
                self._advance()
                if self._stirred:
                    self._settle(clients, pool, log)
        finally:
            log.close()
            self.service.close()
            if self._helper is not None:
                self._helper.close()
            pool.close()
            self.busy_s = pool.busy_s
            self._states.close()
        return self.service.outcome or "stopped"

    # ---- the loop

    def _advance(self) -> None:
        """Let the clock jump to what is due next, and do it."""
        timer = self.service.call_at
        if self._events.next_at <= timer and self._events.next_at < float("inf"):
            self._stirred = False
            self._events.advance()
            return
        self._stirred = True
        if timer == float("inf"):
            raise UserError(
                "nothing can happen any more: no client will ever be available "
                "(devices.availability), and there is no deadline"
            )
        self.clock.jump(timer)

    def _settle(self, clients: Clients, pool: Pool, log: EventLog) -> None:
        """Everything that needs no time: messages, timers that are due, new turns and models."""
        busy = True
        while busy:
            busy = False
            while self.service.pump(0.0) or (self._helper and self._helper.pump(0.0)):
                pass
            model = self._new_model()
            if model is not None:
                log.note("version", version=model.version, updates=model.updates, final=model.final)
                clients.give(model)
                if self._cadence.due(model):
                    self._evaluate(model, pool, log)
            while (delivery := self._port.receive_assignment(0.0)) is not None:
                busy = True
                clients.take(delivery)

    def _arrival(self, client: str, now: float) -> float:
        """The first time from now on at which this client's device is available and free."""
        free = self._free_at(client)
        until, was_free = self._away.get(client, (0.0, 0.0))
        if now < until and free == was_free:
            return until
        starts = self._next_start(client, max(now, free))
        if starts > now:
            self._away[client] = starts, free
        return starts

    def _free_at(self, client: str) -> float:
        """When this client's device is free; at once where a version that has just been made, and
        is not published yet, stops its training.
        """
        clients, coordinator = self._clients, self.service.coordinator
        if clients is None or coordinator is None or clients.will_stop(client, coordinator.version):
            return 0.0
        return clients.free_at(client)

    def _submit(self, message: Message) -> None:
        self._port.submit(Envelope.of(message))
        self._stirred = True

    # ---- models

    def _new_model(self) -> GlobalModel | None:
        envelope = self._port.newest_model()
        if envelope is None or (newest := order(envelope.headers)) == self._model_order:
            return None
        self._model_order = newest
        return envelope.model() if envelope else None

    def _evaluate(self, model: GlobalModel, pool: Pool, log: EventLog) -> None:
        def work(trainers: PerPlan[LocalTrainer]) -> tuple[dict[str, float], int]:
            trainer = trainers.of(model.plan)
            return trying(load_task(model.plan), lambda: trainer.evaluate(model.tensors))

        job: Job[tuple[dict[str, float], int]] = pool.submit(self.clock.now, work)

        def evaluated() -> None:
            evaluation, left_out = evaluation_of(model, WORKER, *pool.wait(job))
            if left_out:
                _log.info(f"version {model.version}: {', '.join(left_out)} are not finite")
            version = {"version": model.version}
            log.note("evaluated", **(version | evaluation.metrics | version))
            self._submit(evaluation)

        self._events.at(self.clock.now, evaluated)
