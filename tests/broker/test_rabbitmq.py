"""What only a server over a network can do to us: rights, limits, refusals."""

from __future__ import annotations

import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pika
import pytest
from pika.adapters.utils.io_services_utils import _AsyncStreamConnector

from fluffle.broker import AccessRefused, BrokerUnreachable, Envelope, TopologyMismatch
from fluffle.broker.rabbitmq.broker import RabbitMQBroker
from fluffle.schemas import UserError
from tests.urls import as_user, user_of

pytestmark = pytest.mark.rabbitmq

PATIENCE_S = 20.0
STARTED = 1_795_410_451_550
A_WHILE_S = 0.4


@pytest.fixture
def user(rabbitmq, federation):
    """A user with the least rights that a worker of this name works with."""

    def make(rights_on_turns=True):
        name = f"site-{federation}"
        rabbitmq.ctl("add_user", name, "secret")
        mailbox = rf"{federation}\.worker\.{name}(\..*)?"
        turns = "|assignments" if rights_on_turns else ""
        shared = rf"{federation}\.(latest-model|global-model{turns})"
        rabbitmq.ctl(
            *("set_permissions", name),
            f"^{mailbox}$",
            rf"^({mailbox}|{federation}\.submit)$",
            f"^({mailbox}|{shared})$",
        )
        return name

    return make


def test_a_worker_with_the_least_rights_can_do_all_its_work(rabbit, ports, user, model, update):
    # Given a leader, a model, a turn, and a worker's user
    leader = ports.leader(rabbit.broker)
    leader.consume(10)
    leader.publish_model(model(1))
    leader.assign([Envelope(b"turn")], 60)
    name = user()
    # When a worker joins as that user
    broker = RabbitMQBroker(as_user(rabbit.node.url, name), rabbit.topology.federation)
    worker = ports.worker(broker, name)
    # Then it gets the model from the late joiners' store, a turn, and the next model
    assert worker.wait_model(None, PATIENCE_S).body == b"model 1.0"
    turn = worker.receive_assignment(PATIENCE_S)
    assert turn.envelope.body == b"turn"
    leader.publish_model(model(2))
    assert worker.wait_model((STARTED, 1, 1, 0), PATIENCE_S).body == b"model 2.0"
    # And its update arrives, with the name that the broker vouches for
    worker.submit(update("u1"))
    worker.ack(turn)
    delivery = leader.receive(PATIENCE_S)
    assert delivery.envelope.user_id == name
    # Which the copy among the rejected keeps
    leader.reject(delivery, "forged")
    assert rabbit.rejected()[0].headers["user"] == name


def test_a_workers_user_can_neither_publish_models_nor_read_updates(rabbit, ports, user):
    ports.leader(rabbit.broker)
    parameters = pika.URLParameters(as_user(rabbit.node.url, user()))
    with contextlib.closing(pika.BlockingConnection(parameters)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="ACCESS_REFUSED"):
            channel.basic_publish(rabbit.topology.global_model, "", b"evil")
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="ACCESS_REFUSED"):
            connection.channel().basic_get(rabbit.topology.updates.name)


def test_a_site_without_slots_needs_no_right_on_turns_and_one_with_slots_hears_of_it(
    rabbit, ports, user, model
):
    leader = ports.leader(rabbit.broker)
    name = user(rights_on_turns=False)
    broker = RabbitMQBroker(as_user(rabbit.node.url, name), rabbit.topology.federation)
    site = ports.worker(broker, name, slots=0)
    leader.publish_model(model(1))
    assert site.wait_model(None, PATIENCE_S).body == b"model 1.0"
    with pytest.raises(AccessRefused, match="assignments"):
        ports.worker(broker, name, slots=1).receive_assignment(PATIENCE_S)


def test_wrong_credentials_are_refused_at_once_without_telling_the_password(rabbit):
    broker = RabbitMQBroker(as_user(rabbit.node.url, "nobody", "hunter2"))
    with pytest.raises(AccessRefused, match="refused user 'nobody'") as caught:
        broker.worker("w1", 1)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_virtual_host_that_is_not_there_is_named(rabbit):
    broker = RabbitMQBroker(rabbit.node.url.replace("%2F", "nowhere"))
    with pytest.raises(AccessRefused, match="virtual host nowhere"):
        broker.aggregator()


def test_an_unreachable_broker_is_tried_visibly_and_then_named(said):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    url = f"amqp://alice:hunter2@127.0.0.1:{port}/lab"
    broker = RabbitMQBroker(url, connect_timeout_s=1.5)
    with pytest.raises(BrokerUnreachable, match=f"127.0.0.1:{port}, virtual host lab") as caught:
        broker.worker("w1", 1)
    assert "refused" in str(caught.value)
    assert len(said) > 1
    assert "trying again" in said[0]
    assert "hunter2" not in str(caught.value) + "".join(said)


def test_a_network_that_breaks_during_the_login_is_not_taken_for_a_wrong_password(rabbit):
    # Given a network that ends every connection as soon as the password has been sent
    with socket.create_connection(("127.0.0.1", rabbit.node.tcp_port)) as real:
        real.sendall(b"AMQP\x00\x00\x09\x01")
        greeting = real.recv(65536)

    def break_off(listener):
        with contextlib.suppress(OSError):
            while True:
                with listener.accept()[0] as one:
                    one.recv(65536)
                    one.sendall(greeting)
                    one.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=break_off, args=(listener,), daemon=True).start()
        # When a worker seeks its broker there
        url = f"amqp://guest:guest@127.0.0.1:{listener.getsockname()[1]}/%2F"
        broker = RabbitMQBroker(url, connect_timeout_s=2)
        # Then it tries again, and blames the network
        with pytest.raises(BrokerUnreachable, match="no RabbitMQ at"):
            broker.worker("w1", 1)
        listener.shutdown(socket.SHUT_RDWR)
    assert len(rabbit.status) > 1
    assert not any("refused" in text for text in rabbit.status)


def test_a_connection_that_is_reset_as_soon_as_it_is_made_is_tried_again(
    rabbit, ports, update, monkeypatch
):
    # Given a network that resets the first connections in the moment in which pika looks at them
    resets = iter([True, True])
    look = _AsyncStreamConnector.__init__

    def reset_and_look(self, *arguments, **options):
        if next(resets, False):
            options["sock"].close()
        look(self, *arguments, **options)

    monkeypatch.setattr(_AsyncStreamConnector, "__init__", reset_and_look)
    # When a worker connects
    url = f"{rabbit.node.url}?stack_timeout=1"
    broker = RabbitMQBroker(url, rabbit.topology.federation)
    worker = ports.worker(broker)
    # Then it gets there with the next attempt, and has said why it took so long
    ports.leader(rabbit.broker).consume(1)
    worker.submit(update("u"))
    assert any("getpeername() failed" in text for text in rabbit.status)


@pytest.mark.parametrize("url", ["http://example.org", "amqp://h:port/", "nonsense"])
def test_a_url_that_is_none_is_a_users_error(url):
    with pytest.raises(UserError, match="amqp://user:password@host"):
        RabbitMQBroker(url).worker("w1", 1)


def test_a_queue_with_other_arguments_is_named_before_anything_is_done(rabbit, ports):
    with contextlib.closing(rabbit.connect()) as connection:
        connection.channel().queue_declare(rabbit.topology.updates.name, durable=True)
        with pytest.raises(TopologyMismatch, match=rabbit.topology.updates.name):
            ports.aggregator(rabbit.broker).lead(PATIENCE_S)
        connection.channel().queue_delete(rabbit.topology.updates.name)


def test_a_worker_waits_and_says_so_while_the_updates_are_full(
    rabbit, ports, update, until, federation
):
    # Given a queue that takes next to nothing, and is full
    leader, worker = ports.leader(rabbit.broker), ports.worker(rabbit.broker)
    pattern = f"^{federation}.updates$"
    limit = '{"max-length-bytes": 1000}'
    rabbit.node.ctl("set_policy", "--apply-to", "queues", federation, pattern, limit)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(lambda: [worker.submit(update(f"u{i}", 600)) for i in range(5)])
        until(lambda: any("full" in text for text in rabbit.status))
        # It says so once, however often it tries
        threading.Event().wait(5 * A_WHILE_S)
        assert len(rabbit.status) == 1, rabbit.status
        assert not waiting.done()
        # When the leader works it off, all arrive
        leader.consume(10)
        got = set()
        while len(got) < 5:
            delivery = leader.receive(PATIENCE_S)
            got.add(delivery.envelope.message_id)
            leader.ack([delivery])
        waiting.result(PATIENCE_S)
    rabbit.node.ctl("clear_policy", federation)
    # And each time it had to wait it says that this is over
    said = [text.split(": ", 1)[1] for text in rabbit.status]
    assert len(said) % 2 == 0
    assert set(said[::2]) == {"the queue is full, waiting until it takes messages again"}
    assert set(said[1::2]) == {"the queue takes messages again"}


def test_an_update_that_finds_no_queue_is_kept_until_there_is_one(rabbit, ports, update, until):
    # Given a federation whose updates queue somebody has deleted
    ports.leader(rabbit.broker).close()
    worker = ports.worker(rabbit.broker)
    with contextlib.closing(rabbit.connect()) as connection:
        connection.channel().queue_delete(rabbit.topology.updates.name)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(worker.submit, update("u"))
        until(lambda: any("no queue is bound to" in text for text in rabbit.status))
        assert not waiting.done()
        # When the next leader sets it up again, the update arrives
        leader = ports.leader(rabbit.broker)
        leader.consume(1)
        assert leader.receive(PATIENCE_S).envelope.body == b"u"
        waiting.result(PATIENCE_S)


def test_a_mailbox_on_the_server_holds_the_newest_model_only(rabbit, ports, model):
    leader = ports.leader(rabbit.broker)
    with contextlib.closing(rabbit.connect()) as connection:
        channel = connection.channel()
        mailbox = rabbit.topology.mailbox("w1")
        channel.queue_declare(mailbox.name, exclusive=True, arguments=dict(mailbox.arguments))
        channel.queue_bind(mailbox.name, mailbox.exchange)
        for version in range(5):
            leader.publish_model(model(version))
        assert channel.basic_get(mailbox.name, True)[2] == b"model 4.0"
        assert channel.basic_get(mailbox.name, True)[0] is None


def test_models_larger_than_a_segment_of_the_store_reach_late_joiners(rabbit, ports, model):
    leader = ports.leader(rabbit.broker)
    for version in range(6):
        leader.publish_model(model(version, size=20_000_000))
    late = ports.worker(rabbit.broker)
    assert late.wait_model((STARTED, 1, 4, 0), PATIENCE_S).body.startswith(b"model 5.0")


def test_connections_and_messages_are_readable_in_the_ui(rabbit, ports, update, until):
    ports.leader(rabbit.broker).close()
    worker = ports.worker(rabbit.broker, "w7")
    worker.submit(update("u"))
    shown = rabbit.node.ctl("list_connections", "client_properties")
    assert f"worker w7@{socket.gethostname()} publishing" in shown
    with contextlib.closing(rabbit.connect()) as connection:
        got = connection.channel().basic_get(rabbit.topology.updates.name)
    assert (got[1].type, got[1].message_id, got[1].app_id) == ("client-update", "u", "fluffle")
    assert (got[1].user_id, got[1].delivery_mode) == (user_of(rabbit.node.url), 2)


def test_a_worker_says_once_that_it_waits_for_an_aggregator(rabbit, ports, until):
    ports.worker(rabbit.broker)
    until(lambda: any("no aggregator has set this federation up" in t for t in rabbit.status))
    threading.Event().wait(A_WHILE_S)
    assert len(rabbit.status) <= 2  # once for each connection
