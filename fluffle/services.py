"""``fluffle aggregator``, ``worker`` and ``evaluator``: one service each, one process each."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from prometheus_client import CollectorRegistry

from fluffle.broker import Broker
from fluffle.broker.rabbitmq.broker import RabbitMQBroker
from fluffle.device_files import check_travels
from fluffle.metrics import (
    AggregatorMetrics,
    EvaluatorMetrics,
    WorkerMetrics,
    new_registry,
    served,
)
from fluffle.run import new_run_id, read_summary, stopping
from fluffle.schemas import Experiment, Tensors, UserError
from fluffle.tracking import Tracker, tracked

_PARENT_EVERY_S = 1.0


def say(text: str) -> None:
    """One line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class Seldom:
    """Says everything, but of attempts to reach a broker only one in ten minutes: it may be away
    for days."""

    EVERY_S = 600.0

    def __init__(
        self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say = say
        self._clock = clock
        self._said_at: dict[str, float] = {}

    def __call__(self, text: str) -> None:
        """Say it, or not."""
        if "trying again" in text:
            what, now = re.sub(r"[\d.]+", "", text), self._clock()
            if now - self._said_at.get(what, -self.EVERY_S) < self.EVERY_S:
                return
            self._said_at[what] = now
        self._say(text)


def connect(url: str, federation: str, role: str, timeout_s: float | None) -> Broker:
    """The broker, which is asked for only when a port is opened; without a timeout for ever."""
    if timeout_s is None:
        forever = threading.TIMEOUT_MAX
        return RabbitMQBroker(
            url, federation, role, connect_timeout_s=forever, on_status=Seldom(say)
        )
    return RabbitMQBroker(url, federation, role, connect_timeout_s=timeout_s, on_status=say)


@contextmanager
def metrics_at(address: str, port: int | None) -> Iterator[CollectorRegistry]:
    """What is registered here is served there; nowhere without a port."""
    registry = new_registry()
    with ExitStack() as stack:
        if port is not None:
            say(f"metrics: {stack.enter_context(served(registry, port, address))}")
        yield registry


def lead(
    experiment: Experiment,
    place: Broker,
    folder: Path,
    initial: Path | None,
    registry: CollectorRegistry,
    code: Path,
    trackers: Sequence[Tracker] = (),
) -> dict[str, Any]:
    """Lead a run until its end, or a signal; the summary object. Raises: UserError.

    code: the folder of a strategy from a file; trackers: where curves go.
    """
    from fluffle.aggregator.service import AggregatorService

    check_travels(experiment)
    _may_leave_early()
    metrics = AggregatorMetrics(registry, folder)
    port = place.aggregator()
    service = AggregatorService(
        experiment,
        port,
        folder,
        run_id=new_run_id(experiment),
        initial=_read_weights(initial) if initial else None,
        code=code,
        on_status=say,
        on_timing=metrics.on_timing,
    )
    metrics.service = service
    try:
        with stopping(service.stop), tracked(service, trackers, say):
            say(f"{service.run()}: {folder}")
    finally:
        port.close()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return read_summary(folder, round(peak_mb, 1))


def work(
    place: Broker,
    name: str,
    slots: int,
    stay: bool,
    journal: Path | None,
    state: Path | None,
    parent: int,
    registry: CollectorRegistry,
    *,
    simulate_devices: bool = False,
) -> None:
    """Train clients until the run is over, or a signal. Raises: UserError."""
    from fluffle.worker.services.client_state import ClientStates, state_folder
    from fluffle.worker.services.journal import Journal
    from fluffle.worker.services.worker import WorkerService
    from fluffle.worker.training.runtime import configure

    _may_leave_early()
    kept = Journal(journal)
    name = name or default_name("worker")
    configure(slots)
    metrics = WorkerMetrics(registry, slots)
    port = place.worker(name, slots)
    service = WorkerService(
        port,
        name,
        slots,
        stay=stay,
        journal=kept,
        states=ClientStates(state or state_folder(), memory_bytes=0),
        simulate_devices=simulate_devices,
        on_status=say,
        on_model=metrics.on_model,
        on_turn=metrics.on_turn,
    )
    _serve(service, port.close, parent)


def reside(
    place: Broker,
    client: str,
    stay: bool,
    journal: Path | None,
    parent: int,
    registry: CollectorRegistry,
) -> None:
    """Train one site's own data until the run is over, or a signal. Raises: UserError."""
    from fluffle.worker.services.journal import Journal
    from fluffle.worker.services.resident import ResidentService
    from fluffle.worker.training.runtime import configure

    _may_leave_early()
    kept = Journal(journal)
    configure(1)
    metrics = WorkerMetrics(registry, 1)
    port = place.worker(client, 0)
    service = ResidentService(
        port,
        client,
        stay=stay,
        journal=kept,
        on_status=say,
        on_model=metrics.on_model,
        on_turn=metrics.on_turn,
    )
    _serve(service, port.close, parent)


def evaluate(
    place: Broker, name: str, stay: bool, parent: int, registry: CollectorRegistry
) -> None:
    """Evaluate until the run is over, or a signal. Raises: UserError."""
    from fluffle.worker.services.evaluator import EvaluatorService
    from fluffle.worker.training.runtime import configure

    _may_leave_early()
    name = name or default_name("evaluator")
    configure(1)
    metrics = EvaluatorMetrics(registry)
    port = place.worker(name, 0)
    service = EvaluatorService(
        port, name, stay=stay, on_status=say, on_evaluation=metrics.on_evaluation
    )
    _serve(service, port.close, parent)


def default_name(role: str) -> str:
    """Role, host and process: unique, and readable in RabbitMQ's UI."""
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40]
    return f"{role}-{host}-{os.getpid()}"


def _may_leave_early() -> None:
    """SIGTERM while TensorFlow is imported or the broker is sought is no failure either."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))


class _Service(Protocol):
    def run(self) -> None: ...
    def stop(self) -> None: ...


def _serve(service: _Service, close: Callable[[], None], parent: int) -> None:
    if parent:
        threading.Thread(target=_leave_with, args=(parent, service), daemon=True).start()
    try:
        with stopping(service.stop):
            service.run()
        say("done")
    finally:
        close()


def _leave_with(parent: int, service: _Service) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_EVERY_S)
    service.stop()
    time.sleep(10 * _PARENT_EVERY_S)
    os._exit(1)  # a training may take for ever, and nobody waits for it any more


def _read_weights(path: Path) -> Tensors:
    from fluffle.schemas.codec import unpack

    try:
        tensors = unpack(path.read_bytes())[1] or {}
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read weights from {path}: {error}") from error
    return {k.removeprefix("model/"): a for k, a in tensors.items() if not k.startswith("server/")}
