"""Services: what ``fluffle aggregator``, ``worker`` and ``evaluator`` share."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

from prometheus_client import CollectorRegistry

from fluffle.broker.rabbitmq.broker import RabbitMQBroker
from fluffle.metrics import new_registry, tell_service
from fluffle.probes import Readiness, served
from fluffle.running import stopping
from fluffle.schemas.errors import UserError, printable

_log = logging.getLogger(__name__)

_PARENT_EVERY_S = 1.0


def connect(url: str, federation: str, role: str, timeout_s: float | None) -> RabbitMQBroker:
    """The broker, which is asked for only when a port is opened; without a timeout for ever.

    Raises: UserError where the role, a worker's name, is none that a message can carry.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}", role):
        raise UserError(
            f"--name {printable(role, 80)}: use letters, digits, dots, _, : and -, 100 at most"
        )
    if timeout_s is None:
        timeout_s = threading.TIMEOUT_MAX
    return RabbitMQBroker(url, federation, role, connect_timeout_s=timeout_s)


@contextmanager
def metrics_at(
    address: str, port: int | None, readiness: Readiness, role: str, federation: str
) -> Iterator[CollectorRegistry]:
    """What is registered here is served there, with probes; nowhere without a port."""
    registry = new_registry()
    tell_service(registry, role, federation)
    with ExitStack() as stack:
        if port is not None:
            url = stack.enter_context(served(registry, port, address, readiness))
            _log.info("metrics: %s", url)
        yield registry


def default_name(role: str) -> str:
    """Role, host and process: unique, and readable in RabbitMQ's UI."""
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40]
    return f"{role}-{host}-{os.getpid()}"


def may_leave_early(code: int = 0) -> None:
    """SIGTERM while TensorFlow is imported or the broker is sought is no failure either."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(code))


def wait_to_be_told(outcome: str) -> None:
    """A run is over, and who would be started again for ever stays until SIGTERM or Ctrl-C."""
    told = threading.Event()
    _log.info("the run is %s; staying until told to stop", outcome)
    with stopping(told.set):
        while not told.wait(1.0):
            pass


class Service(Protocol):
    """What works until it is told to stop."""

    def run(self) -> None:
        """Work. Raises: UserError."""
        ...

    def stop(self) -> None:
        """Ask it to end; from any thread."""
        ...


def serve(service: Service, close: Callable[[], None], parent: int) -> None:
    """Work until the run is over, a signal, or the end of the process ``parent`` (0: of none)."""
    if parent:
        threading.Thread(target=_leave_with, args=(parent, service), daemon=True).start()
    try:
        with stopping(service.stop):
            service.run()
        _log.info("done")
    finally:
        close()


def _leave_with(parent: int, service: Service) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_EVERY_S)
    service.stop()
    time.sleep(10 * _PARENT_EVERY_S)
    os._exit(1)  # a training may take for ever, and nobody waits for it any more
