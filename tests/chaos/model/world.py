"""One schedule: the production services on one broker, and everything that can go wrong.

Real are the aggregator's service, coordinator, ledger and store, the workers' slots and what they
keep for clients, resident clients, the evaluator and the embedded broker. Replaced are the trainer
(``training``), the clock and the scheduler.

Aggregators, workers and sites are processes: a fault ends one, and it is started again, as a person
or a supervisor would. When the faults are used up the world goes on until the run is over.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from fluffle.aggregator.service import AggregatorService
from fluffle.broker import Closed, Envelope
from fluffle.broker.embedded import EmbeddedAggregatorPort, EmbeddedBroker, EmbeddedWorkerPort
from fluffle.broker.topology import DELIVERY_LIMIT
from fluffle.schemas import Plan, UserError
from fluffle.worker.services.evaluator import EvaluatorService
from fluffle.worker.services.resident import ResidentService
from fluffle.worker.services.shutdown import Shutdown
from fluffle.worker.services.slot import Slot, SlotContext
from fluffle.worker.tasks.registry import load_task
from tests.chaos.model import faults, setting
from tests.chaos.model.disk import FaultyStates, faulty_disk
from tests.chaos.model.faults import KINDS, Fault
from tests.chaos.model.ports import FaultyAggregatorPort, FaultyWorkerPort
from tests.chaos.model.scheduler import Crash, Scheduler, Task, current
from tests.chaos.model.training import TinyTrainer, initial_weights
from tests.chaos.model.watch import Watch

#: A run without faults takes a few hundred steps of the scheduler.
MOST_STEPS = 30_000
#: The number of restarts is the supervisor's: it is patient.
RESTART_S = 0.5
TMPFS = Path("/dev/shm")
SUSPICIOUS = 3


class Process:
    """What ends as a whole."""

    def __init__(self, name: str, role: str) -> None:
        self.name = name
        self.role = role
        self.alive = True
        self.tasks: list[Task] = []
        self.port: FaultyAggregatorPort | FaultyWorkerPort | None = None
        self.service: AggregatorService | None = None
        #: An aggregator's clock begins anywhere.
        self.clock_ahead = 0.0
        self.restart: Callable[[], None] = lambda: None
        self.restart_s = RESTART_S


class Flag(threading.Event):
    """An event whose waiting is virtual."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    def wait(self, timeout: float | None = None) -> bool:
        if not self.is_set():
            self._scheduler.sleep(timeout or 0.0)
        return self.is_set()


class _Notes(logging.Handler):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._note = note

    def emit(self, record: logging.LogRecord) -> None:
        self._note(record.getMessage())


@contextmanager
def noted(note: Callable[[str], None]) -> Iterator[None]:
    """Within, what is logged goes into the history."""
    handler, logger = _Notes(note), logging.getLogger("fluffle")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class World:
    """One run under one list of faults."""

    def __init__(
        self, seed: int, schedule: Sequence[Fault] | None = None, trace: bool = False
    ) -> None:
        """
        schedule: instead of the seed's own faults.
        trace: keep a line for everything that happens.
        """
        self.setting = setting.draw(seed)
        self.faults = faults.draw(seed) if schedule is None else tuple(schedule)
        self.history: list[str] = []
        #: Faults that struck, by kind, and crashes by the point where they did.
        self.struck: Counter[str] = Counter()
        self.crashes: Counter[str] = Counter()
        self.outcome: str | None = None
        self.scheduler = Scheduler(Random(f"order {seed}"))
        self.broker = EmbeddedBroker(lambda: self.scheduler.now)
        self.messages: list[Envelope] = []
        #: Messages that are on their way back into the queue.
        self.delayed: list[object] = []
        self._processes: list[Process] = []
        self._random = Random(f"details {seed}")
        self._trace = trace
        self._counts = dict.fromkeys(KINDS.values(), 0)
        self._due: dict[tuple[str, int], list[Fault]] = {}
        for fault in self.faults:
            self._due.setdefault((KINDS[fault.kind], fault.n), []).append(fault)
        self._broker_up_at = 0.0
        self._disk_free_at = 0.0
        self._asked = 0
        #: Whether a person starts a run again that was aborted, or failed: once.
        self._resumes = self.setting.resumes
        base = TMPFS if TMPFS.is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix="fluffle-model-", dir=base))
        #: Where workers that have a folder in common keep what clients remember.
        self.states = self.folder / "states"
        self.watch = Watch(self)

    # ---- the whole

    def run(self) -> list[str]:
        """What was wrong, a line each; nothing if all is well."""
        try:
            with faulty_disk(self), noted(self.note):
                self._play()
            self.watch.over()
            return self.watch.violations
        finally:
            self.watch.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _play(self) -> None:
        for number in range(self.setting.aggregators):
            self._start_aggregator(f"aggregator-{number}")
        for number, slots in enumerate(self.setting.workers):
            self._start_worker(f"w{number}", slots)
        for name in self.setting.experiment.residents:
            self._start_site(name)
        if self.setting.experiment.evaluation.every_updates or not self.setting.workers:
            self._start_evaluator()
        try:
            while self._goes_on() and not self.watch.violations:
                if self.scheduler.steps > MOST_STEPS:
                    self.watch.violated(f"the run does not end within {MOST_STEPS} steps")
                    return
                self._strike_between_steps()
                task = self.scheduler.step()
                if task is None:
                    self.watch.violated("nothing can happen any more")
                elif task.crashed and task.owner.alive:
                    self._end(task.owner)
        finally:
            for process in list(self._processes):
                process.restart = lambda: None
                self._end(process)

    def _goes_on(self) -> bool:
        """The run is not over, or there is a standby who has not noticed yet."""
        return self.outcome is None or any(p.role == "aggregator" for p in self._processes)

    @property
    def comparable(self) -> bool:
        """Whether this run has to give the undisturbed run's bytes: no turn was replaced, and who
        trained a client did not matter.
        """
        deterministic = self.setting.experiment.aggregation.deterministic
        return deterministic and self.setting.states != "own" and not self.watch.turns_lost

    def note(self, text: str) -> None:
        """Into the history."""
        if self._trace:
            task = current()
            name = task.name if task is not None else "*"
            text = text.replace(str(self.folder), "FOLDER")
            self.history.append(f"{self.scheduler.now:8.2f} {name:14} {text}")

    def wire(self, envelope: Envelope) -> Envelope:
        """What arrives: bytes, as over RabbitMQ, or the message itself, as within a process."""
        if self.setting.as_bytes:
            return dataclasses.replace(envelope, content=envelope.body)
        return envelope

    def sent(self, envelope: Envelope) -> None:
        """A worker's message is in the broker, confirmed or not."""
        self.messages.append(envelope)
        self.scheduler.stir()

    def in_updates(self) -> list[Any]:
        """All entries of the updates queue: waiting, delayed or in somebody's hands."""
        queue = self.broker.updates
        held = [entry for entries in queue._held.values() for entry in entries.values()]
        return [*queue._ready, *self.delayed, *held]

    # ---- processes

    def _start_aggregator(self, name: str) -> None:
        process = Process(name, "aggregator")
        process.clock_ahead = self._random.random() * 1000.0
        process.restart = lambda: self._restart_aggregator(name)
        port = FaultyAggregatorPort(self)
        process.port = port
        process.service = AggregatorService(
            self.setting.experiment,
            port,
            self.folder,
            run_id="run",
            initial=initial_weights() if self.setting.initial else None,
            clock_name="virtual",
            clock=lambda: self._clock(process),
        )
        self._start(process, [lambda: self._aggregate(process, port)])

    def _restart_aggregator(self, name: str) -> None:
        """Nobody starts a run again that has ended since."""
        if self.outcome is None:
            self._start_aggregator(name)

    def _clock(self, process: Process) -> float:
        """An aggregator's clock; who asks it again and again, and does nothing else, spins."""
        self._asked += 1
        if self._asked > MOST_STEPS:
            self.watch.violated("the aggregator spins")
            raise Crash
        return self.scheduler.now + process.clock_ahead

    def _aggregate(self, process: Process, port: FaultyAggregatorPort) -> None:
        """As ``fluffle aggregator`` does."""
        assert process.service is not None
        try:
            outcome = process.service.run()
            self.note(f"ends: {outcome}")
            if outcome in ("aborted", "failed") and self._resumes:
                self._resumes = False
            elif outcome != "stopped":
                if self.outcome not in (None, outcome):
                    self.watch.violated(f"the run ended as {self.outcome}, and then as {outcome}")
                self.outcome = outcome
        except UserError as error:
            self.note(f"ends: {error}")
        except Exception as error:
            self.watch.violated(f"an aggregator died of {type(error).__name__}: {error}")
        port.close()
        self._ended(process)

    def _start_worker(self, name: str, slots: int) -> None:
        process = Process(name, "worker")
        process.restart = lambda: self._start_worker(name, slots)
        port = FaultyWorkerPort(self, name, slots)
        process.port = port
        shutdown = Shutdown(port)
        shutdown.told = Flag(self.scheduler)
        folder = self.states if self.setting.states == "shared" else None
        shared = SlotContext(
            worker_id=name,
            port=port,
            shutdown=shutdown,
            states=FaultyStates(self, folder),
        )
        self._start(process, [lambda: self._work(shared)] * slots)

    def _work(self, shared: SlotContext) -> None:
        try:
            Slot(shared, self._make_trainer).run()
        except Closed:
            pass
        except Exception as error:
            self.watch.violated(f"a worker died of {type(error).__name__}: {error}")

    def _start_site(self, name: str) -> None:
        process = Process(name, "worker")
        process.restart = lambda: self._start_site(name)
        port = FaultyWorkerPort(self, name, 0)
        process.port = port
        service = ResidentService(
            port,
            name,
            stay=self.setting.sites_stay,
            open_task=load_task,
            make_trainer=self._make_trainer,
        )
        self._start(process, [lambda: self._reside(service, process)])

    def _reside(self, service: ResidentService, process: Process) -> None:
        """As ``fluffle worker --client-id`` does."""
        try:
            service.run()
        except UserError as error:
            self.note(f"ends: {error}")
        except Exception as error:
            self.watch.violated(f"a site died of {type(error).__name__}: {error}")
        assert process.port is not None
        process.port.close()
        self._ended(process)

    def _start_evaluator(self) -> None:
        process = Process("evaluator", "worker")
        process.restart = self._start_evaluator
        port = FaultyWorkerPort(self, "evaluator", 0)
        process.port = port
        service = EvaluatorService(port, "evaluator", stay=True, make_trainer=self._make_trainer)
        self._start(process, [service.run])

    def _make_trainer(self, plan: Plan) -> TinyTrainer:
        def sleep() -> None:
            self.point("training")
            self.scheduler.sleep(self._random.random() * self.setting.train_s)

        return TinyTrainer(sleep, self.setting.failing)

    def _start(self, process: Process, bodies: Sequence[Callable[[], None]]) -> None:
        self._processes.append(process)
        process.tasks = [self.scheduler.spawn(process.name, process, body) for body in bodies]

    def _end(self, process: Process) -> None:
        """As SIGKILL does; called by the scheduler."""
        process.alive = False
        self.scheduler.end(process.tasks)
        assert process.port is not None
        process.port.inner.close()
        self.scheduler.stir()
        self._ended(process)

    def _ended(self, process: Process) -> None:
        process.alive = False
        if process in self._processes:
            self._processes.remove(process)
            if self.outcome is None:
                self.scheduler.at(process.restart_s, process.restart)

    # ---- what faults ask

    def point(self, name: str, switch: bool = True) -> None:
        """The process that runs passes a point: it may end here; where it may, others run."""
        task = current()
        if task is None:
            return
        process: Process = task.owner
        if not process.alive:
            raise Crash
        if self._trace:
            self.note(name)
        self._asked = 0
        for fault in self._at(process.role):
            if fault.kind.startswith("crash"):
                process.restart_s = RESTART_S + fault.seconds
                self.note(f"CRASH {fault}")
                self.crashes[f"{process.role}: {name.split()[0]}"] += 1
                raise Crash
            self._strike_process(fault, process, switch)
        if switch:
            self.scheduler.pause()

    def strikes(self, trigger: str) -> Fault | None:
        """The fault that strikes here, if one does."""
        for fault in self._at(trigger):
            self.note(f"FAULT {fault}")
            return fault
        return None

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Perhaps one of the workers is not reached by what is published meanwhile."""
        fault, workers = self.strikes("publish"), self.broker.workers
        absent = None
        if fault is not None and workers:
            absent = sorted(workers, key=lambda port: port.worker_id)[fault.pick % len(workers)]
            workers.discard(absent)
        try:
            yield
        finally:
            if absent is not None and not absent._closed:
                workers.add(absent)

    def disk_is_full(self) -> bool:
        """Asked before everything that writes."""
        if current() is None:
            return False
        for fault in self._at("disk"):
            self.note(f"FAULT {fault}")
            self._disk_free_at = self.scheduler.now + fault.seconds + 1e-9
        return self.scheduler.now < self._disk_free_at

    def wait_for_broker(self) -> None:
        """A port without a broker waits for one."""
        while self.scheduler.now < self._broker_up_at:
            self.scheduler.sleep(self._broker_up_at - self.scheduler.now)

    def disconnect(self, port: EmbeddedAggregatorPort | EmbeddedWorkerPort) -> None:
        """The broker takes back what this port holds."""
        with self.broker.changed:
            if isinstance(port, EmbeddedAggregatorPort):
                self.broker.updates.give_back(port)
                if self.broker.leader is port:
                    self.broker.leader = None
            else:
                self.broker.assignments.give_back(port)
        self.scheduler.stir()

    def _at(self, trigger: str) -> Sequence[Fault]:
        self._counts[trigger] = count = self._counts[trigger] + 1
        struck = self._due.get((trigger, count))
        if struck is None:
            return ()
        self.struck.update(fault.kind for fault in struck)
        return struck

    def _strike_process(self, fault: Fault, process: Process, switch: bool) -> None:
        self.note(f"FAULT {fault}")
        assert process.port is not None
        if fault.kind == "stop-aggregator":
            assert process.service is not None
            process.restart_s = RESTART_S + fault.seconds
            process.service.stop()
            return
        self.disconnect(process.port.inner)
        if fault.kind.startswith("freeze") and switch:
            self.scheduler.freeze(fault.seconds)

    # ---- faults of the broker and of the world, between two steps

    def _strike_between_steps(self) -> None:
        for fault in self._at("step"):
            self.note(f"FAULT {fault}")
            match fault.kind:
                case "broker-restart":
                    self._restart_broker(fault.seconds)
                case "clock-jump":
                    for process in self._processes:
                        process.clock_ahead += fault.seconds
                case "duplicate":
                    if self.messages:
                        envelope = self.messages[fault.pick % len(self.messages)]
                        self.broker.updates.put(envelope)
                case "poison":
                    self._poison()
                case _:
                    self._disturb_queue(fault)
            self.scheduler.stir()

    def _restart_broker(self, seconds: float) -> None:
        self._broker_up_at = self.scheduler.now + seconds
        for process in self._processes:
            assert process.port is not None
            self.disconnect(process.port.inner)
        self.broker.events.clear()

    def _poison(self) -> None:
        """Whatever is in hand has come back too often: as after a crash for each time."""
        for holder, held in list(self.broker.updates._held.items()):
            for entry in held.values():
                entry.delivery_count = DELIVERY_LIMIT
            assert isinstance(holder, EmbeddedAggregatorPort)
            self.disconnect(holder)

    def _disturb_queue(self, fault: Fault) -> None:
        queue = self.broker.assignments if fault.pick % 3 == 0 else self.broker.updates
        if not queue._ready:
            return
        queue._ready.rotate(-(fault.pick % len(queue._ready)))
        entry = queue._ready[0]
        if fault.kind == "suspect":
            entry.delivery_count = SUSPICIOUS
        elif fault.kind == "delay":
            queue._ready.popleft()
            queue.ready_bytes -= entry.envelope.size
            self.delayed.append(entry)

            def arrive() -> None:
                self.delayed.remove(entry)
                queue._ready.append(entry)
                queue.ready_bytes += entry.envelope.size
                self.scheduler.stir()

            self.scheduler.at(fault.seconds, arrive)
