"""What a resident client's user may do on RabbitMQ, and all that it may not."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from broker.node import Node
from broker.rabbitmq import RabbitMQBroker
from broker.rabbitmq_aggregator import RabbitMQAggregatorPort
from broker.rabbitmq_worker import RabbitMQWorkerPort
from broker.topology import ASSIGNMENTS, EVENTS, REJECTED, UPDATES, Topology
from broker.transport import Envelope
from tests.broker.conftest import PATIENCE_S

pytestmark = pytest.mark.rabbitmq

REFUSED, LOCKED, FORGED = 403, 405, 406


@dataclasses.dataclass
class Sites:
    """A federation with a leader and two sites, each with a user of its own."""

    node: Node
    topology: Topology
    users: tuple[str, str]
    leader: RabbitMQAggregatorPort
    ports: tuple[RabbitMQWorkerPort, RabbitMQWorkerPort]

    def attempt(self, action: Callable[[BlockingChannel], object]) -> int | None:
        """The code that RabbitMQ refuses this of the first site with; None where it does not."""
        with contextlib.closing(connect(self.node, self.users[0])) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            try:
                action(channel)
                channel.close()
            except ChannelClosedByBroker as error:
                return int(error.reply_code)
        return None

    def mailbox(self, user: str) -> str:
        """The name of a site's mailbox, which nobody else is told."""
        names = self.node.ctl("list_queues", "name").split()
        prefix = f"{self.topology.federation}.worker.{user}."
        return next(name for name in names if name.startswith(prefix))


def url(node: Node, user: str) -> str:
    where = urlsplit(node.url)
    return f"amqp://{user}:{user}@{where.hostname}:{where.port}{where.path}"


def connect(node: Node, user: str) -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(url(node, user)))


@pytest.fixture
def sites(rabbitmq: Node, federation: str) -> Iterator[Sites]:
    topology = Topology(federation)
    nonce = secrets.token_hex(2)
    users = (f"hospital-{nonce}", f"hospital-{nonce}0")  # one name begins with the other
    for user in users:
        rabbitmq.ctl("add_user", user, user)
        rights = topology.resident_rights(user)
        rabbitmq.ctl("set_permissions", "-p", "/", user, *rights)
    leader = RabbitMQBroker(rabbitmq.url, federation).aggregator()
    assert leader.lead(PATIENCE_S)
    leader.consume(10)
    ports = [RabbitMQBroker(url(rabbitmq, user), federation).worker(user, 0) for user in users]
    model = Envelope(b"model", headers=dict.fromkeys(("run_started", "epoch", "version"), 1))
    leader.publish_model(dataclasses.replace(model, headers={**model.headers, "attempt": 0}))
    for port in ports:
        assert port.wait_model(None, PATIENCE_S) is not None
    yield Sites(rabbitmq, topology, users, leader, (ports[0], ports[1]))
    for port in (*ports, leader):
        port.close()
    for user in users:
        rabbitmq.ctl("delete_user", user)


def publish(exchange: str, key: str, user: str | None) -> Callable[[BlockingChannel], object]:
    sent_as = pika.BasicProperties(user_id=user)
    return lambda channel: channel.basic_publish(exchange, key, b"", sent_as)


def test_a_site_is_known_by_its_user_in_all_that_it_sends(sites: Sites) -> None:
    for port, user in zip(sites.ports, sites.users, strict=True):
        port.submit(Envelope(b"update"))
        delivery = sites.leader.receive(PATIENCE_S)
        assert delivery is not None
        assert delivery.envelope.user_id == user
        sites.leader.ack([delivery])


def test_a_site_sends_nothing_in_anothers_name(sites: Sites) -> None:
    me, other = sites.users
    for key in (UPDATES, EVENTS):
        assert sites.attempt(publish(sites.topology.submit, key, other)) == FORGED
        assert sites.attempt(publish(sites.topology.submit, key, me)) is None


def test_a_site_publishes_no_model_and_no_turn_and_uses_no_other_exchange(sites: Sites) -> None:
    names = sites.topology
    for exchange, key in [
        (names.global_model, ""),
        (names.assign, ASSIGNMENTS),
        (names.dead_letter, REJECTED),
        ("", names.updates.name),
        ("amq.fanout", ""),
    ]:
        assert sites.attempt(publish(exchange, key, sites.users[0])) == REFUSED, exchange


def test_a_site_reads_purges_and_deletes_no_queue_but_its_own(sites: Sites) -> None:
    for queue in (*sites.topology.shared, sites.topology.aggregator):
        for action in (
            lambda channel, name: channel.queue_purge(name),
            lambda channel, name: channel.queue_delete(name),
            lambda channel, name: channel.basic_get(name),
        ):
            if queue.name == sites.topology.latest_model.name:
                continue  # read by all: a stream can be neither purged nor got from
            code = sites.attempt(lambda channel, do=action, name=queue.name: do(channel, name))
            assert code in (REFUSED, LOCKED), queue.name
    assert sites.attempt(lambda c: c.queue_delete(sites.topology.latest_model.name)) == REFUSED
    assert sites.leader.purge_assignments() == 0


def test_a_site_takes_no_turn(sites: Sites) -> None:
    sites.leader.assign([Envelope(b"turn")], 60)
    name = sites.topology.assignments.name
    assert sites.attempt(lambda channel: next(channel.consume(name, inactivity_timeout=1))) == (
        REFUSED
    )
    assert sites.leader.purge_assignments() == 1, "the turn is still there"


def test_a_site_cannot_touch_the_mailbox_of_another_even_if_it_knew_its_name(sites: Sites) -> None:
    name = sites.mailbox(sites.users[1])
    for action in (
        lambda channel: channel.basic_get(name),
        lambda channel: channel.queue_purge(name),
        lambda channel: channel.queue_delete(name),
        lambda channel: channel.queue_unbind(name, sites.topology.global_model),
        lambda channel: channel.queue_declare(name, exclusive=True),
        publish("", name, sites.users[0]),
    ):
        assert sites.attempt(action) in (REFUSED, LOCKED)
    assert sites.mailbox(sites.users[1]) == name


def test_a_site_declares_nothing_but_its_mailbox(sites: Sites) -> None:
    names = sites.topology
    assert sites.attempt(lambda c: c.exchange_declare("mine")) == REFUSED
    assert sites.attempt(lambda c: c.queue_declare("mine")) == REFUSED
    assert sites.attempt(lambda c: c.queue_declare(names.mailbox("aggregator").name)) == REFUSED
    assert sites.attempt(lambda c: c.queue_declare(names.aggregator.name)) == REFUSED
    assert sites.attempt(lambda c: c.exchange_delete(names.submit)) == REFUSED


def test_a_site_cannot_listen_to_what_others_send(sites: Sites) -> None:
    mine = sites.topology.mailbox(sites.users[0]).name

    def listen(channel: BlockingChannel) -> None:
        channel.queue_declare(mine, exclusive=True)
        channel.queue_bind(mine, sites.topology.global_model)  # which it may
        channel.queue_bind(mine, sites.topology.submit, UPDATES)

    assert sites.attempt(listen) == REFUSED
