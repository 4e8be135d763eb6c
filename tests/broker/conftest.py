"""Where the conformance suite runs: a broker, and a look behind it that its ports do not give."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import pika
import pytest

from fluffle.broker.admin.node import Node
from fluffle.broker.embedded import EmbeddedBroker
from fluffle.broker.rabbitmq.broker import RabbitMQBroker
from fluffle.broker.rabbitmq.envelopes import envelope
from fluffle.broker.topology import Topology
from fluffle.broker.transport import AggregatorPort, Broker, Envelope, WorkerPort
from tests.proxy import Proxy

#: Longer than anything here takes, short enough to fail before pytest's own timeout.
PATIENCE_S = 20.0
#: Milliseconds, as in real runs: too large for 32 bits, where AMQP clients change types.
STARTED = 1_795_410_451_550


class Harness(Protocol):
    """A broker and what lies in it."""

    broker: Broker

    def ready(self, queue: str) -> int:
        """How many messages wait in ``updates`` or ``assignments``."""
        ...

    def rejected(self) -> list[Envelope]:
        """What lies in the rejected messages."""
        ...


class EmbeddedHarness:
    def __init__(self) -> None:
        self.broker = EmbeddedBroker()

    def ready(self, queue: str) -> int:
        return self.broker.depths()[queue]

    def rejected(self) -> list[Envelope]:
        return self.broker.rejected()


class RabbitMQHarness:
    def __init__(self, node: Node, federation: str, status: list[str]) -> None:
        self.node = node
        self.topology = Topology(federation)
        #: What was logged.
        self.status = status
        self.broker = RabbitMQBroker(node.url, federation)

    def ready(self, queue: str) -> int:
        name = f"{self.topology.federation}.{queue}"
        with contextlib.closing(self.connect()) as connection:
            declared = connection.channel().queue_declare(name, passive=True)
            return int(declared.method.message_count)

    def rejected(self) -> list[Envelope]:
        """Reads them for good."""
        found = []
        with contextlib.closing(self.connect()) as connection:
            channel = connection.channel()
            while True:
                method, properties, body = channel.basic_get(self.topology.rejected.name, True)
                if method is None:
                    return found
                arrived = envelope(properties, body)
                told = properties.headers
                reason = told.get("reason", told.get("x-first-death-reason", ""))
                headers = {**arrived.headers, "reason": reason}
                found.append(Envelope(body, arrived.type, arrived.message_id, headers))

    def connect(self) -> pika.BlockingConnection:
        return pika.BlockingConnection(pika.URLParameters(self.node.url))


@pytest.fixture(params=["embedded", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def harness(request: pytest.FixtureRequest, federation: str, said: list[str]) -> Harness:
    if request.param == "embedded":
        return EmbeddedHarness()
    return RabbitMQHarness(request.getfixturevalue("rabbitmq"), federation, said)


@pytest.fixture
def rabbit(rabbitmq: Node, federation: str, said: list[str]) -> RabbitMQHarness:
    return RabbitMQHarness(rabbitmq, federation, said)


@pytest.fixture
def proxy(rabbitmq: Node) -> Iterator[Proxy]:
    network = Proxy(rabbitmq.url)
    yield network
    network.close()


class Ports:
    """Opens ports and closes them when the test is over."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack

    def leader(self, broker: Broker) -> AggregatorPort:
        port = self.aggregator(broker)
        assert port.lead(PATIENCE_S)
        return port

    def aggregator(self, broker: Broker) -> AggregatorPort:
        port = broker.aggregator()
        self._stack.callback(port.close)
        return port

    def worker(self, broker: Broker, worker_id: str = "w1", slots: int = 1) -> WorkerPort:
        port = broker.worker(worker_id, slots)
        self._stack.callback(port.close)
        return port


@pytest.fixture
def ports() -> Iterator[Ports]:
    with contextlib.ExitStack() as stack:
        yield Ports(stack)


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Waits for what only a look from outside can tell."""

    def wait(true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < deadline, "it did not become true"
            time.sleep(0.05)

    return wait


@pytest.fixture
def model() -> Callable[..., Envelope]:
    """A global model's envelope: what the transport reads of it is its order."""

    def make(version: int, attempt: int = 0, epoch: int = 1, size: int = 0) -> Envelope:
        order = dict(
            zip(
                ("run_started", "epoch", "version", "attempt"),
                (STARTED, epoch, version, attempt),
                strict=True,
            )
        )
        body = f"model {version}.{attempt}".encode() + bytes(size)
        return Envelope(body, "global-model", f"run:v{version}", order)

    return make


@pytest.fixture
def update() -> Callable[..., Envelope]:
    def make(name: str, size: int = 0) -> Envelope:
        return Envelope(name.encode() + bytes(size), "client-update", name, {"client": "c1"})

    return make
