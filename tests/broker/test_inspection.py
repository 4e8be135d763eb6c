"""Looking at a live federation: what is seen, what is refused, and that nobody notices."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing

import pika
import pytest

from fluffle.broker import BrokerUnreachable, Envelope
from fluffle.broker.admin.inspection import inspect_federation
from fluffle.broker.admin.node import Node
from fluffle.broker.admin.session import NoAnswer, open_session
from fluffle.broker.rabbitmq.broker import RabbitMQBroker
from fluffle.broker.topology import Topology
from tests.proxy import Proxy
from tests.urls import as_user

pytestmark = pytest.mark.rabbitmq


def queues(node: Node, federation: str) -> list[list[str]]:
    """Name, messages and consumers of each queue of this federation."""
    lines = node.ctl("list_queues", "name", "messages", "consumers").splitlines()
    return sorted(line.split() for line in lines if line.startswith(federation))


def test_a_federation_at_work_is_seen_and_left_as_it_is(
    rabbitmq: Node,
    federation: str,
    model: Callable[..., Envelope],
    update: Callable[..., Envelope],
    until: Callable[[Callable[[], bool]], None],
) -> None:
    # Given an aggregator that has published three models, rejected an update, and holds one
    broker = RabbitMQBroker(rabbitmq.url, federation)
    port = broker.aggregator()
    assert port.lead(timeout_s=30)
    for version in range(3):
        port.publish_model(model(version, size=10_000))
    worker = broker.worker("w1", 1)
    for name in ("a", "b", "c"):
        worker.submit(update(name))
    port.consume(1)
    refused = port.receive(30.0)
    assert refused is not None
    port.reject(refused, "late")
    assert port.receive(30.0) is not None
    until(lambda: [f"{federation}.updates", "2", "1"] in queues(rabbitmq, federation))
    before = queues(rabbitmq, federation)
    # When somebody looks, twice
    views = [inspect_federation(rabbitmq.url, federation) for _ in range(2)]
    # Then each sees what waits, who leads and the newest model
    for view in views:
        assert (view.updates, view.rejected, view.led) == (1, 1, True)
        assert view.newest is not None
        assert view.newest.headers["version"] == 2
        assert view.unseen == []
    # And all is as before
    assert queues(rabbitmq, federation) == before
    worker.close()
    port.close()
    until(lambda: inspect_federation(rabbitmq.url, federation).led is False)


def test_where_there_is_no_federation_none_is_made(rabbitmq: Node, federation: str) -> None:
    view = inspect_federation(rabbitmq.url, federation)
    assert (view.updates, view.rejected, view.led, view.newest) == (None, None, False, None)
    assert [one.split(" (")[0] for one in view.unseen] == [
        f"{federation}.updates",
        f"{federation}.updates.rejected",
        "the newest model",
    ]
    assert queues(rabbitmq, federation) == []


def test_what_a_user_may_not_read_is_said_and_the_rest_is_seen(
    rabbitmq: Node, federation: str
) -> None:
    # Given a user who may publish and read nothing (4.3 wants a right even for a look)
    port = RabbitMQBroker(rabbitmq.url, federation).aggregator()
    assert port.lead(timeout_s=30)
    rabbitmq.ctl("add_user", f"{federation}-n", "secret")
    rabbitmq.ctl("set_permissions", f"{federation}-n", "^$", f"^{federation}", "^$")
    # When it looks
    view = inspect_federation(as_user(rabbitmq.url, f"{federation}-n"), federation)
    port.close()
    # Then depths are seen, and the models are not
    assert (view.updates, view.rejected, view.led) == (0, 0, True)
    (unseen,) = view.unseen
    assert unseen.startswith("the newest model (ACCESS_REFUSED")


def test_a_run_that_makes_models_without_end_is_seen_all_the_same(
    rabbitmq: Node, federation: str, model: Callable[..., Envelope]
) -> None:
    # Given an aggregator that publishes one model after another
    port = RabbitMQBroker(rabbitmq.url, federation).aggregator()
    assert port.lead(timeout_s=30)
    port.publish_model(model(0))
    over = threading.Event()

    def publish() -> None:
        version = 0
        while not over.is_set():
            version += 1
            port.publish_model(model(version))

    publishing = threading.Thread(target=publish)
    publishing.start()
    # When somebody looks
    try:
        view = inspect_federation(rabbitmq.url, federation)
    finally:
        over.set()
        publishing.join()
        port.close()
    # Then it ends, and says that there may be newer ones
    assert view.newest is not None
    assert view.unseen == ["models newer than that (they keep coming)"]


def test_a_stream_that_is_ahead_of_its_reader_is_left_without_harm(
    rabbitmq: Node, federation: str, model: Callable[..., Envelope]
) -> None:
    # Given models that come faster than anybody reads them
    port = RabbitMQBroker(rabbitmq.url, federation).aggregator()
    assert port.lead(timeout_s=30)
    port.publish_model(model(0))
    over = threading.Event()

    def publish() -> None:
        exchange = Topology(federation).global_model
        with closing(pika.BlockingConnection(pika.URLParameters(rabbitmq.url))) as connection:
            channel = connection.channel()
            while not over.is_set():
                channel.basic_publish(exchange, "", b"model", pika.BasicProperties(type="x"))

    publishing = threading.Thread(target=publish)
    publishing.start()
    # When somebody looks, and leaves while the next is on its way
    try:
        for _ in range(3):
            view = inspect_federation(rabbitmq.url, federation)
            assert (view.updates, view.led) == (0, True)
    finally:
        over.set()
        publishing.join()
        port.close()


def test_a_broker_that_stops_answering_is_not_called_away(
    rabbitmq: Node, proxy: Proxy, federation: str
) -> None:
    # Given a broker from which nothing arrives once it has let us in
    names = Topology(federation)
    with open_session(proxy.url, names, "test") as session:
        proxy.deafen()
        # When it is asked, and asked again
        for _ in range(2):
            with pytest.raises(NoAnswer, match="no answer within 4 s"):
                session.ask(lambda c: c.queue_declare(names.updates.name, passive=True))
    # Then whoever cannot do without the answer hears that the broker is there
    with pytest.raises(BrokerUnreachable, match="is there, and gave no answer within 4 s"):  # noqa: SIM117
        with open_session(rabbitmq.url, names, "test"):
            raise NoAnswer
