"""Broken channels, broken networks, killed brokers: the ports carry on and lose nothing."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fluffle.broker import Envelope, LeadershipLost, MessageTooLarge
from fluffle.broker.admin.node import Node
from fluffle.broker.rabbitmq.broker import RabbitMQBroker
from fluffle.broker.topology import Topology

pytestmark = pytest.mark.rabbitmq

PATIENCE_S = 20.0
STARTED = 1_795_410_451_550
A_WHILE_S = 0.4


@pytest.fixture(scope="module")
def fragile():
    """A server of our own to kill, which takes messages of 1 MiB at most."""
    with Node(settings={"max_message_size": "1048576"}) as node:
        yield node


def receive(port, count):
    got = [port.receive(PATIENCE_S) for _ in range(count)]
    assert all(got), f"only {sum(d is not None for d in got)} of {count} came"
    return got


def test_a_channel_that_the_broker_closes_is_opened_again(rabbit, ports, update, until):
    # Given a leader with an update in hand
    leader, worker = ports.leader(rabbit.broker), ports.worker(rabbit.broker)
    leader.consume(10)
    worker.submit(update("u"))
    (held,) = receive(leader, 1)
    # When the broker closes its channel (an ack of a message that never was: 406)
    leader._consuming.call(lambda: leader._updates.channel.basic_ack(4711))
    # Then it says so, the update comes again, and the old receipt is void
    (again,) = receive(leader, 1)
    assert again.envelope.body == b"u"
    assert again.delivery_count == 1
    leader.ack([held])
    leader.ack([again])
    worker.submit(update("v"))
    assert receive(leader, 1)[0].envelope.body == b"v"
    assert any("PRECONDITION_FAILED" in text for text in rabbit.status)


def test_a_deleted_queue_is_noticed_and_made_again(rabbit, ports, update, until):
    leader, worker = ports.leader(rabbit.broker), ports.worker(rabbit.broker)
    leader.consume(10)
    leader.assign([Envelope(b"turn 1")], 60)
    worker.ack(worker.receive_assignment(PATIENCE_S))
    with contextlib.closing(rabbit.connect()) as connection:
        for queue in (rabbit.topology.updates, rabbit.topology.assignments):
            connection.channel().queue_delete(queue.name)
    worker.submit(update("u"))
    assert receive(leader, 1)[0].envelope.body == b"u"
    leader.assign([Envelope(b"turn 2")], 60)
    assert worker.receive_assignment(PATIENCE_S).envelope.body == b"turn 2"


def test_what_was_not_confirmed_is_published_again(rabbit, proxy, ports, update, until):
    # Given a worker whose network swallows what the broker says
    leader = ports.leader(rabbit.broker)
    worker = ports.worker(RabbitMQBroker(proxy.url, rabbit.topology.federation))
    worker.submit(update("before"))
    proxy.deafen()
    with ThreadPoolExecutor() as pool:
        # When it submits an update, which the broker has, but whose confirm is lost
        waiting = pool.submit(worker.submit, update("u"))
        until(lambda: rabbit.ready("updates") == 2)
        assert not waiting.done()
        # And its connection breaks
        proxy.reset()
        # Then it submits it again, and then it is confirmed
        waiting.result(PATIENCE_S)
    leader.consume(10)
    assert [d.envelope.body for d in receive(leader, 3)] == [b"before", b"u", b"u"]


def test_a_leader_whose_network_broke_takes_its_own_lock_again(rabbit, proxy, ports, update):
    # Given a leader whose connections break without the broker noticing
    broker = RabbitMQBroker(proxy.url, rabbit.topology.federation, heartbeat_s=1)
    leader, worker = ports.leader(broker), ports.worker(rabbit.broker)
    leader.consume(10)
    proxy.part()
    # When the broker still keeps the lock for its old connection
    worker.submit(update("u"))
    # Then it waits for it, and leads on
    assert receive(leader, 1)[0].envelope.body == b"u"
    leader.publish_model(Envelope(b"?"))


def test_a_leader_that_was_replaced_hears_of_it(rabbit, proxy, ports):
    # Given a leader, and somebody who waits for the lead
    broker = RabbitMQBroker(proxy.url, rabbit.topology.federation, heartbeat_s=1)
    leader = ports.leader(broker)
    leader.consume(10)
    with contextlib.closing(rabbit.connect()) as connection:
        connection.channel().basic_consume(
            rabbit.topology.aggregator.name, lambda *_: None, auto_ack=True
        )
        # When the leader's network breaks, and the other is quicker
        proxy.reset()
        # Then the leader does not lead any more
        with pytest.raises(LeadershipLost):
            leader.receive(PATIENCE_S)
        with pytest.raises(LeadershipLost):
            leader.publish_model(Envelope(b"?"))


def test_a_leader_that_the_broker_lets_go_of_takes_the_lead_again(rabbit, ports, update, until):
    # Given a leader that the broker serves no more, silently: its queue was made anew
    leader, worker = ports.leader(rabbit.broker), ports.worker(rabbit.broker)
    leader.consume(10)
    with contextlib.closing(rabbit.connect()) as connection:
        connection.channel().queue_delete(rabbit.topology.aggregator.name)
    # Then it is served again, and leads on; and nobody else does
    until(lambda: not ports.aggregator(rabbit.broker).lead(0))
    worker.submit(update("u"))
    assert receive(leader, 1)[0].envelope.body == b"u"


def test_a_leader_keeps_the_lead_while_a_slow_network_brings_updates(
    rabbit, proxy, ports, update, said
):
    # Given a leader that hears its broker at 650 kB/s
    leader, worker = (
        ports.leader(RabbitMQBroker(proxy.url, rabbit.topology.federation)),
        ports.worker(rabbit.broker),
    )
    proxy.delay(0.1)
    # When updates come that take longer than a probe is waited for, one behind the other
    for name in "abc":
        worker.submit(update(name, size=2_200_000))
    leader.consume(10)
    # Then it gets them all, and has led all the time
    assert len(receive(leader, 3)) == 3
    assert not [text for text in said if "lead" in text]


def test_of_many_who_want_the_lead_one_has_it_and_then_the_next(rabbit, ports):
    # Given five that want the lead at once
    five = [ports.aggregator(rabbit.broker) for _ in range(5)]
    with ThreadPoolExecutor(5) as pool:
        led = list(pool.map(lambda port: port.lead(1), five))
    assert sum(led) == 1
    # When the one that has it goes, and one of those that wait tries again
    five[led.index(True)].close()
    rest = [port for port, leads in zip(five, led, strict=True) if not leads]
    # Then it leads, and the others rest and do not
    assert rest[0].lead(PATIENCE_S)
    assert not rest[1].lead(0)


def test_eight_seconds_of_training_under_a_heartbeat_of_two_cost_nothing(rabbit, ports, update):
    # Given connections that die when they miss two heartbeats of 2 s
    broker = RabbitMQBroker(rabbit.node.url, rabbit.topology.federation, heartbeat_s=2)
    leader, worker = ports.leader(broker), ports.worker(broker)
    leader.consume(10)
    leader.assign([Envelope(b"turn")], 60)
    turn = worker.receive_assignment(PATIENCE_S)
    worker.submit(update("before"))
    (held,) = receive(leader, 1)
    rabbit.status.clear()
    # When the thread that uses both is busy for 8 s
    end = time.monotonic() + 8
    while time.monotonic() < end:
        sum(range(10_000))
    # Then the receipts are still good and nothing was reconnected
    worker.submit(update("after"))
    worker.ack(turn)
    leader.ack([held])
    assert receive(leader, 1)[0].delivery_count == 0
    assert rabbit.status == []


def test_a_killed_broker_that_comes_back_has_lost_nothing(
    fragile, ports, update, model, federation, said
):
    # Given a federation at work (3.10.8 may forget queues that are younger than 3 s)
    broker = RabbitMQBroker(fragile.url, federation)
    leader, worker = ports.leader(broker), ports.worker(broker, slots=2)
    leader.consume(10)
    threading.Event().wait(3.5)
    leader.publish_model(model(1))
    worker.wait_model(None, PATIENCE_S)
    leader.assign([Envelope(b"taken"), Envelope(b"waits")], 600)
    turns = [worker.receive_assignment(PATIENCE_S) for _ in range(2)]
    for name in ("acked", "held"):
        worker.submit(update(name))
    acked, held = receive(leader, 2)
    leader.ack([acked])
    worker.submit(update("queued"))
    (queued,) = receive(leader, 1)
    with ThreadPoolExecutor() as pool:
        # When the broker is killed, and everybody goes on in the meantime
        fragile.kill()
        submitting = pool.submit(worker.submit, update("meanwhile"))
        publishing = pool.submit(leader.publish_model, model(2))
        threading.Event().wait(A_WHILE_S)
        assert not submitting.done()
        leader.ack([held])  # too late: this receipt is void
        fragile.start()
        # Then all is there again but what was acked
        submitting.result(PATIENCE_S)
        publishing.result(PATIENCE_S)
    again = receive(leader, 3)
    assert {d.envelope.body for d in again} == {b"held", b"queued", b"meanwhile"}
    # And what was here before says so: it is no second message
    assert {d.envelope.body for d in again if d.delivery_count > 0} >= {b"held", b"queued"}
    leader.ack([queued])  # void as well
    leader.ack(again)
    assert leader.receive(A_WHILE_S) is None
    # The turns too
    retaken = [worker.receive_assignment(PATIENCE_S) for _ in range(2)]
    assert {d.envelope.body for d in retaken} == {b"taken", b"waits"}
    worker.ack(turns[0])
    worker.ack(retaken[0])
    # And models, for those who were there and those who come
    assert worker.wait_model((STARTED, 1, 1, 0), PATIENCE_S).body == b"model 2.0"
    late = ports.worker(broker, "late")
    assert late.wait_model((STARTED, 1, 1, 0), PATIENCE_S).body == b"model 2.0"
    assert any("lost" in text for text in said)
    assert any("connected again" in text for text in said)


def test_a_message_that_is_too_large_is_refused_with_the_setting_that_helps(
    fragile, ports, update, model, federation
):
    broker = RabbitMQBroker(fragile.url, federation)
    leader, worker = ports.leader(broker), ports.worker(broker)
    with pytest.raises(MessageTooLarge, match=r"3 MB .* 1.05 MB .* max_message_size") as caught:
        leader.publish_model(model(1, size=3_000_000))
    assert "\n" not in str(caught.value)
    with pytest.raises(MessageTooLarge, match="max_message_size"):
        worker.submit(update("u", size=3_000_000))
    # And nothing else suffers
    leader.publish_model(model(2))
    worker.submit(update("v"))
    leader.consume(1)
    assert receive(leader, 1)[0].envelope.body == b"v"
    assert worker.wait_model(None, PATIENCE_S).body == b"model 2.0"


def test_a_broker_short_of_memory_stops_publishers_only(
    fragile, ports, update, until, federation, said
):
    # Given an update that waits, and a broker that runs out of memory
    broker = RabbitMQBroker(fragile.url, federation)
    leader, worker = ports.leader(broker), ports.worker(broker)
    worker.submit(update("before"))
    fragile.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
    with ThreadPoolExecutor() as pool:
        # When a worker submits, it waits and says so
        waiting = pool.submit(worker.submit, update("after"))
        until(lambda: any("blocks publishers" in text for text in said))
        assert not waiting.done()
        # While what is there can be received and acked
        leader.consume(1)
        leader.ack(receive(leader, 1))
        # Until there is memory again
        fragile.ctl("set_vm_memory_high_watermark", "0.4")
        waiting.result(PATIENCE_S)
        until(lambda: any("takes messages again" in text for text in said))
    assert receive(leader, 1)[0].envelope.body == b"after"


def test_a_leader_goes_on_with_updates_while_its_turns_cannot_leave(
    fragile, ports, update, until, federation, said
):
    # Given a broker that runs out of memory, with an update that waits
    broker = RabbitMQBroker(fragile.url, federation)
    leader, worker = ports.leader(broker), ports.worker(broker)
    worker.submit(update("before"))
    fragile.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
    # When the leader issues a turn, it is not held up, and makes room
    leader.assign([Envelope(b"turn 1")], 600)
    until(lambda: any("blocks publishers" in text for text in said))
    leader.assign([Envelope(b"turn 2")], 600)
    leader.consume(1)
    leader.ack(receive(leader, 1))
    assert worker.receive_assignment(A_WHILE_S) is None
    # Then both turns arrive once there is memory again
    fragile.ctl("set_vm_memory_high_watermark", "0.4")
    turns = []
    for _ in range(2):
        turns.append(worker.receive_assignment(PATIENCE_S))
        worker.ack(turns[-1])
    assert {turn.envelope.body for turn in turns} == {b"turn 1", b"turn 2"}


def test_turns_that_were_not_confirmed_are_published_again(rabbit, proxy, ports):
    # Given a leader whose network swallows what it says
    leader = ports.leader(RabbitMQBroker(proxy.url, rabbit.topology.federation))
    worker = ports.worker(rabbit.broker)
    proxy.swallow()
    # When it issues a turn, and its connection breaks
    leader.assign([Envelope(b"turn")], 600)
    assert worker.receive_assignment(A_WHILE_S) is None
    proxy.reset()
    # Then the turn arrives all the same
    assert worker.receive_assignment(PATIENCE_S).envelope.body == b"turn"


def test_a_publisher_that_is_stopped_for_longer_than_its_patience_connects_anew_and_loses_nothing(
    fragile, ports, update, until, federation, said
):
    # Given a broker without memory, and a worker that gives up connections that are blocked for 1 s
    leader = ports.leader(RabbitMQBroker(fragile.url, federation))
    url = f"{fragile.url}?blocked_connection_timeout=1"
    worker = ports.worker(RabbitMQBroker(url, federation))
    worker.submit(update("before"))
    fragile.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
    with ThreadPoolExecutor() as pool:
        # When it submits again, and has given up twice
        waiting = pool.submit(worker.submit, update("after"))
        until(lambda: sum("lost" in text for text in said) >= 2)
        assert not waiting.done()
        # And then there is memory again
        fragile.ctl("set_vm_memory_high_watermark", "0.4")
        # Then the update is confirmed, and there
        waiting.result(PATIENCE_S)
    leader.consume(10)
    assert {d.envelope.body for d in receive(leader, 2)} == {b"before", b"after"}


def test_a_broker_that_was_emptied_is_set_up_again(rabbit, ports, update, model, until):
    # Given a federation at work
    leader, worker = ports.leader(rabbit.broker), ports.worker(rabbit.broker)
    leader.consume(10)
    leader.publish_model(model(1))
    worker.wait_model(None, PATIENCE_S)
    # When somebody deletes all that is shared
    topology = Topology(rabbit.topology.federation)
    with contextlib.closing(rabbit.connect()) as connection:
        channel = connection.channel()
        for queue in topology.shared:
            channel.queue_delete(queue.name)
        for exchange in topology.exchanges:
            channel.exchange_delete(exchange)
    # Then the leader makes it anew as soon as it needs it, and the work goes on
    worker.submit(update("u"))
    assert receive(leader, 1)[0].envelope.body == b"u"
    leader.assign([Envelope(b"turn")], 60)
    assert worker.receive_assignment(PATIENCE_S).envelope.body == b"turn"


def test_a_slow_network_keeps_nobody_from_leading(rabbit, proxy, ports, model):
    # Given a model that was published before, and a network with a round trip of 0.8 s
    first = ports.leader(rabbit.broker)
    first.publish_model(model(3))
    first.close()
    port = ports.aggregator(RabbitMQBroker(proxy.url, rabbit.topology.federation))
    proxy.delay(0.4)
    # When an aggregator asks for the lead, which nobody has
    # Then it gets it, however short its patience
    assert port.lead(0.5)
    # And sees the model, although that takes longer than it would wait for one
    assert port.latest_model(0.5).headers["version"] == 3
    # And who asks now hears that another leads
    other = ports.aggregator(rabbit.broker)
    assert not other.lead(0.2)
