"""What the embedded broker alone does: bounds in memory, and a clock that can be virtual."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fluffle.broker import Envelope, MessageTooLarge
from fluffle.broker.embedded import EmbeddedBroker

PATIENCE_S = 20.0


def test_turns_expire_by_the_brokers_own_clock():
    now = 100.0
    broker = EmbeddedBroker(clock=lambda: now)
    leader, worker = broker.aggregator(), broker.worker("w1", 2)
    leader.lead(0)
    leader.assign([Envelope(b"short")], 10)
    leader.assign([Envelope(b"long")], 20)
    now = 110.0
    assert broker.depths()["assignments"] == 1
    assert worker.receive_assignment(0).envelope.body == b"long"
    # A turn in somebody's hands does not expire, but does when it comes back
    now = 200.0
    worker.close()
    assert broker.worker("w2", 1).receive_assignment(0) is None


def test_a_worker_waits_while_the_updates_are_full():
    # Given room for two updates
    broker = EmbeddedBroker(max_updates_bytes=100)
    leader, worker = broker.aggregator(), broker.worker("w1", 1)
    leader.lead(0)
    leader.consume(10)
    worker.submit(Envelope(bytes(50)))
    worker.submit(Envelope(bytes(50)))
    with ThreadPoolExecutor() as pool:
        # When a third comes, it waits
        third = pool.submit(worker.submit, Envelope(bytes(50)))
        threading.Event().wait(0.1)
        assert not third.done()
        # Until one is taken
        leader.receive(0)
        third.result(PATIENCE_S)
    assert broker.depths() == {"updates": 2, "unacked": 1, "rejected": 0, "assignments": 0}


def test_an_update_larger_than_all_the_room_still_gets_through_alone():
    broker = EmbeddedBroker(max_updates_bytes=100)
    broker.worker("w1", 1).submit(Envelope(bytes(500)))
    assert broker.depths()["updates"] == 1


def test_of_the_rejected_the_last_ones_are_kept_and_all_are_counted():
    broker = EmbeddedBroker(max_rejected_bytes=100)
    leader, worker = broker.aggregator(), broker.worker("w1", 1)
    leader.lead(0)
    leader.consume(10)
    for i in range(5):
        worker.submit(Envelope(bytes(50), message_id=str(i)))
        leader.reject(leader.receive(0), "too-stale")
    assert [envelope.message_id for envelope in broker.rejected()] == ["3", "4"]
    assert broker.depths()["rejected"] == 5


def test_a_message_above_the_brokers_limit_is_refused_with_its_size():
    broker = EmbeddedBroker(max_message_bytes=1_000_000)
    leader = broker.aggregator()
    leader.lead(0)
    with pytest.raises(MessageTooLarge, match=r"3 MB .* 1 MB"):
        leader.publish_model(Envelope(bytes(3_000_000)))


def test_events_are_bounded_and_grow_old():
    now = 0.0
    broker = EmbeddedBroker(clock=lambda: now)
    leader, worker = broker.aggregator(), broker.worker("w1", 1)
    leader.lead(0)
    leader.consume(1)
    for i in range(20_000):
        worker.emit(Envelope(str(i).encode(), "event"))
    assert leader.receive(0).envelope.body == b"10000"
    now = 3600.0
    assert leader.receive(0) is None
