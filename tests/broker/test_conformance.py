"""What every broker does. The embedded one and RabbitMQ pass the same tests."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fluffle.broker import Closed, Envelope, LeadershipLost

PATIENCE_S = 20.0
STARTED = 1_795_410_451_550
#: Long enough for a message that must not come to have come.
A_WHILE_S = 0.4


def bodies(deliveries):
    return sorted(delivery.envelope.body for delivery in deliveries)


def receive(port, count):
    got = [port.receive(PATIENCE_S) for _ in range(count)]
    assert all(got), f"only {sum(d is not None for d in got)} of {count} came"
    return got


# Models


def test_a_worker_sees_each_newer_model_and_never_goes_back(harness, ports, model):
    # Given a worker that waits for its first model
    leader, worker = ports.leader(harness.broker), ports.worker(harness.broker)
    assert worker.newest_model() is None
    # When three versions are published
    for version in range(3):
        leader.publish_model(model(version))
    # Then it gets the newest of them
    newest = worker.wait_model((STARTED, 1, 1, 0), PATIENCE_S)
    assert newest.body == b"model 2.0"
    assert newest.type == "global-model"
    assert newest.message_id == "run:v2"
    assert newest.headers["version"] == 2
    # And when an old leader's model arrives later, it keeps what it has
    leader.publish_model(model(1))
    assert worker.wait_model((STARTED, 1, 2, 0), A_WHILE_S) is None
    assert worker.newest_model().body == b"model 2.0"


def test_a_republished_model_is_newer_by_its_attempt_and_a_new_epoch_beats_a_version(
    harness, ports, model
):
    leader, worker = ports.leader(harness.broker), ports.worker(harness.broker)
    leader.publish_model(model(5))
    leader.publish_model(model(5, attempt=1))
    assert worker.wait_model((STARTED, 1, 5, 0), PATIENCE_S).body == b"model 5.1"
    leader.publish_model(model(4, epoch=2))
    assert worker.wait_model((STARTED, 1, 5, 1), PATIENCE_S).body == b"model 4.0"


def test_a_late_joiner_gets_the_newest_model_and_then_the_next(harness, ports, model):
    # Given models published while nobody was there
    leader = ports.leader(harness.broker)
    for version in range(20):
        leader.publish_model(model(version))
    # When a worker joins
    worker = ports.worker(harness.broker)
    # Then it has the newest
    assert worker.wait_model((STARTED, 1, 18, 0), PATIENCE_S).body == b"model 19.0"
    # And hears of the next
    leader.publish_model(model(20))
    assert worker.wait_model((STARTED, 1, 19, 0), PATIENCE_S).body == b"model 20.0"


def test_a_model_whose_headers_are_not_ours_is_passed_over(harness, ports, model):
    leader, worker = ports.leader(harness.broker), ports.worker(harness.broker)
    leader.publish_model(Envelope(b"?", headers={"version": "new"}))
    leader.publish_model(model(1))
    assert worker.wait_model(None, PATIENCE_S).body == b"model 1.0"
    assert ports.worker(harness.broker, "w2").wait_model(None, PATIENCE_S).body == b"model 1.0"


def test_what_is_no_model_keeps_out_no_other(harness, ports, model):
    # Given a worker that has got something that calls itself a very new model
    leader, worker = ports.leader(harness.broker), ports.worker(harness.broker)
    leader.publish_model(model(1))
    assert worker.wait_model(None, PATIENCE_S) is not None
    leader.publish_model(model(2**40))
    false = worker.wait_model((STARTED, 1, 1, 0), PATIENCE_S)
    assert false.headers["version"] == 2**40
    assert false.model() is None
    # When the worker says that it is none
    worker.forget_model(false)
    assert worker.newest_model() is None
    # Then the real newest arrives when it is published next
    leader.publish_model(model(2))
    assert worker.wait_model((STARTED, 1, 1, 0), PATIENCE_S).headers["version"] == 2


def test_an_order_beyond_all_messages_is_passed_over(harness, ports, model):
    leader, worker = ports.leader(harness.broker), ports.worker(harness.broker)
    leader.publish_model(model(2**60))
    leader.publish_model(model(1))
    assert worker.wait_model(None, PATIENCE_S).headers["version"] == 1


def test_a_worker_restarted_under_its_old_name_is_let_in_at_once(harness, ports, model):
    # Given a worker that has died without the broker knowing it yet
    leader = ports.leader(harness.broker)
    ports.worker(harness.broker, "w1")
    # When it comes back
    again = ports.worker(harness.broker, "w1")
    leader.publish_model(model(1))
    # Then it works
    assert again.wait_model(None, PATIENCE_S).body == b"model 1.0"


def test_the_next_leader_finds_the_newest_model_of_the_last(harness, ports, model):
    first = ports.leader(harness.broker)
    assert first.latest_model(A_WHILE_S) is None
    for version in range(5):
        first.publish_model(model(version))
    first.close()
    assert ports.leader(harness.broker).latest_model(PATIENCE_S).body == b"model 4.0"


# Turns


def test_each_turn_goes_to_one_worker_and_a_worker_holds_no_more_than_its_slots(harness, ports):
    # Given five turns and a worker with two slots
    leader = ports.leader(harness.broker)
    leader.assign([Envelope(f"turn {i}".encode(), "assignment") for i in range(5)], 60)
    worker = ports.worker(harness.broker, "w1", slots=2)
    # Then it gets two
    first, second = (worker.receive_assignment(PATIENCE_S) for _ in range(2))
    assert worker.receive_assignment(A_WHILE_S) is None
    # And for each that it is done with, another
    worker.ack(first)
    third = worker.receive_assignment(PATIENCE_S)
    # While another worker gets the rest
    other = ports.worker(harness.broker, "w2", slots=5)
    rest = [other.receive_assignment(PATIENCE_S) for _ in range(2)]
    assert bodies([first, second, third, *rest]) == [f"turn {i}".encode() for i in range(5)]


def test_the_turns_of_a_worker_that_leaves_go_to_another(harness, ports):
    leader = ports.leader(harness.broker)
    leader.assign([Envelope(b"turn")], 60)
    gone = ports.worker(harness.broker, "w1")
    assert gone.receive_assignment(PATIENCE_S).delivery_count == 0
    gone.close()
    again = ports.worker(harness.broker, "w2").receive_assignment(PATIENCE_S)
    assert again.envelope.body == b"turn"
    assert again.delivery_count == 1


def test_a_turn_that_was_done_with_does_not_come_again(harness, ports, until):
    leader = ports.leader(harness.broker)
    leader.assign([Envelope(b"turn")], 60)
    worker = ports.worker(harness.broker, "w1")
    worker.ack(worker.receive_assignment(PATIENCE_S))
    worker.close()
    assert ports.worker(harness.broker, "w2").receive_assignment(A_WHILE_S) is None
    assert harness.ready("assignments") == 0


def test_a_turn_that_nobody_took_in_time_is_gone(harness, ports):
    leader = ports.leader(harness.broker)
    leader.assign([Envelope(b"short")], 0.05)
    leader.assign([Envelope(b"long")], 60)
    threading.Event().wait(A_WHILE_S)
    worker = ports.worker(harness.broker, slots=2)
    assert worker.receive_assignment(PATIENCE_S).envelope.body == b"long"
    assert worker.receive_assignment(A_WHILE_S) is None


def test_a_worker_without_slots_takes_no_turns(harness, ports):
    ports.leader(harness.broker).assign([Envelope(b"turn")], 60)
    assert ports.worker(harness.broker, slots=0).receive_assignment(A_WHILE_S) is None
    assert harness.ready("assignments") == 1


def test_purging_removes_the_turns_that_nobody_holds(harness, ports, until):
    leader = ports.leader(harness.broker)
    leader.assign([Envelope(b"turn")] * 3, 60)
    worker = ports.worker(harness.broker)
    held = worker.receive_assignment(PATIENCE_S)
    assert leader.purge_assignments() == 2
    worker.ack(held)
    assert worker.receive_assignment(A_WHILE_S) is None


# Updates


def test_a_confirmed_update_waits_for_an_aggregator(harness, ports, update):
    # Given a federation without a leader
    ports.leader(harness.broker).close()
    # When a worker submits
    ports.worker(harness.broker).submit(update("u1"))
    # Then it lies there, and the next leader gets it as it was
    assert harness.ready("updates") == 1
    leader = ports.leader(harness.broker)
    leader.consume(10)
    delivery = leader.receive(PATIENCE_S)
    assert delivery.envelope.body == b"u1"
    assert delivery.envelope.type == "client-update"
    assert delivery.envelope.message_id == "u1"
    assert delivery.envelope.headers == {"client": "c1"}
    assert delivery.delivery_count == 0


def test_a_worker_that_is_there_before_the_aggregator_loses_nothing(harness, ports, update, model):
    # Given a worker that submits while nothing has been set up
    worker = ports.worker(harness.broker)
    with ThreadPoolExecutor() as pool:
        submitted = pool.submit(worker.submit, update("early"))
        # When an aggregator comes
        leader = ports.leader(harness.broker)
        leader.consume(10)
        # Then it gets the update, and the worker gets turns and models
        assert leader.receive(PATIENCE_S).envelope.body == b"early"
        submitted.result(PATIENCE_S)
    leader.assign([Envelope(b"turn")], 60)
    leader.publish_model(model(1))
    assert worker.receive_assignment(PATIENCE_S).envelope.body == b"turn"
    assert worker.wait_model(None, PATIENCE_S).body == b"model 1.0"


def test_updates_that_were_not_acked_go_to_the_next_leader(harness, ports, update):
    # Given a leader that holds three updates and has acked one
    first, worker = ports.leader(harness.broker), ports.worker(harness.broker)
    first.consume(10)
    for name in ("a", "b", "c"):
        worker.submit(update(name))
    held = receive(first, 3)
    first.ack(d for d in held if d.envelope.body == b"b")
    # When it goes
    first.close()
    # Then the next has the other two, and can tell that they came back
    second = ports.leader(harness.broker)
    second.consume(10)
    again = receive(second, 2)
    assert bodies(again) == [b"a", b"c"]
    assert [delivery.delivery_count for delivery in again] == [1, 1]
    assert second.receive(A_WHILE_S) is None


def test_a_receipt_from_before_means_nothing_now(harness, ports, update):
    # Given a delivery of a port that is gone
    first, worker = ports.leader(harness.broker), ports.worker(harness.broker)
    first.consume(10)
    worker.submit(update("u"))
    stale = first.receive(PATIENCE_S)
    first.close()
    # When another port acks it
    second = ports.leader(harness.broker)
    second.consume(10)
    again = second.receive(PATIENCE_S)
    second.ack([stale])
    first.ack([stale])
    second.reject(stale, "stale")
    # Then it is still there for the next, and acking twice harms nobody
    second.close()
    third = ports.leader(harness.broker)
    third.consume(10)
    assert third.receive(PATIENCE_S).envelope.body == again.envelope.body
    assert harness.rejected() == []


def test_acking_twice_harms_nobody(harness, ports, update):
    leader, worker = ports.leader(harness.broker), ports.worker(harness.broker)
    leader.consume(10)
    worker.submit(update("a"))
    delivery = leader.receive(PATIENCE_S)
    leader.ack([delivery, delivery])
    leader.ack([delivery])
    worker.submit(update("b"))
    assert leader.receive(PATIENCE_S).envelope.body == b"b"
    assert leader.receive(A_WHILE_S) is None


def test_no_more_than_prefetch_updates_are_in_hand_and_it_can_change(harness, ports, update):
    leader, worker = ports.leader(harness.broker), ports.worker(harness.broker)
    # Given a prefetch of two
    leader.consume(2)
    for i in range(6):
        worker.submit(update(str(i)))
    held = receive(leader, 2)
    assert leader.receive(A_WHILE_S) is None
    # When it is raised, more come
    leader.consume(4)
    held += receive(leader, 2)
    assert leader.receive(A_WHILE_S) is None
    # When it is lowered, none comes until enough are acked
    leader.consume(1)
    leader.ack(held[:3])
    assert leader.receive(A_WHILE_S) is None
    leader.ack(held[3:])
    fifth = receive(leader, 1)
    assert leader.receive(A_WHILE_S) is None
    leader.ack(fifth)
    sixth = receive(leader, 1)
    # And each came once
    assert bodies([*held, *fifth, *sixth]) == [str(i).encode() for i in range(6)]


def test_a_rejected_update_is_kept_with_its_reason_and_does_not_come_again(
    harness, ports, update, until
):
    leader, worker = ports.leader(harness.broker), ports.worker(harness.broker)
    leader.consume(10)
    worker.submit(update("bad"))
    leader.reject(leader.receive(PATIENCE_S), "not-finite")
    (copy,) = harness.rejected()
    assert copy.body == b"bad"
    assert copy.type == "client-update"
    assert copy.message_id == "bad"
    assert copy.headers["reason"] == "not-finite"
    assert copy.headers["client"] == "c1"
    leader.close()
    after = ports.leader(harness.broker)
    after.consume(10)
    assert after.receive(A_WHILE_S) is None


def test_an_update_that_kills_every_leader_ends_among_the_rejected(harness, ports, update, until):
    # Given a poisonous update
    ports.leader(harness.broker).close()
    ports.worker(harness.broker).submit(update("poison"))
    # When 21 leaders receive it and die
    counts = []
    for _ in range(21):
        leader = ports.leader(harness.broker)
        leader.consume(1)
        counts.append(leader.receive(PATIENCE_S).delivery_count)
        leader.close()
    assert counts == list(range(21))
    # Then it is put aside, and says why
    leader = ports.leader(harness.broker)
    leader.consume(1)
    assert leader.receive(A_WHILE_S) is None
    until(lambda: harness.ready("updates") == 0)
    found: list[Envelope] = []
    until(lambda: bool(found.extend(harness.rejected()) or found))
    assert found[0].body == b"poison"
    assert found[0].headers["reason"] == "delivery_limit"


def test_events_arrive_and_need_no_ack(harness, ports, until):
    leader, worker = ports.leader(harness.broker), ports.worker(harness.broker)
    leader.consume(1)
    with ThreadPoolExecutor() as pool:
        # An event may be lost while a connection is being set up, so it is sent until one arrives
        arrived = pool.submit(leader.receive, PATIENCE_S)
        while not arrived.done():
            worker.emit(Envelope(b"hello", "event", headers={"kind": "joined"}))
            threading.Event().wait(0.05)
    event = arrived.result().envelope
    assert (event.body, event.type, event.headers) == (b"hello", "event", {"kind": "joined"})


def test_many_updates_from_many_threads_all_arrive_once(harness, ports, update):
    leader = ports.leader(harness.broker)
    leader.consume(8)
    workers = [ports.worker(harness.broker, f"w{i}") for i in range(3)]
    with ThreadPoolExecutor(6) as pool:
        for i in range(60):
            pool.submit(workers[i % 3].submit, update(f"{i:02}", size=50_000))
        got = []
        for _ in range(60):
            delivery = leader.receive(PATIENCE_S)
            got.append(delivery.envelope.body[:2])
            leader.ack([delivery])
    assert sorted(got) == [f"{i:02}".encode() for i in range(60)]


# Leadership and closing


def test_one_leads_and_the_next_follows_when_it_ends(harness, ports):
    first, second = ports.leader(harness.broker), ports.aggregator(harness.broker)
    # A second aggregator waits in vain while the first leads
    assert not second.lead(A_WHILE_S)
    assert first.lead(0)
    with pytest.raises(LeadershipLost):
        second.publish_model(Envelope(b"?"))
    # And leads as soon as it is gone
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(second.lead, PATIENCE_S)
        first.close()
        assert waiting.result()
    second.publish_model(Envelope(b"?"))


def test_who_gave_up_waiting_for_the_lead_does_not_have_it_later(harness, ports):
    first, impatient = ports.leader(harness.broker), ports.aggregator(harness.broker)
    assert not impatient.lead(A_WHILE_S)
    first.close()
    assert ports.aggregator(harness.broker).lead(PATIENCE_S)


def test_closing_a_port_wakes_whoever_waits(harness, ports):
    leader, worker = ports.leader(harness.broker), ports.worker(harness.broker)
    standby = ports.aggregator(harness.broker)
    leader.consume(1)
    with ThreadPoolExecutor() as pool:
        waiting = [
            pool.submit(standby.lead, PATIENCE_S),
            pool.submit(leader.receive, PATIENCE_S),
            pool.submit(worker.wait_model, None, PATIENCE_S),
            pool.submit(worker.receive_assignment, PATIENCE_S),
        ]
        threading.Event().wait(0.1)
        for port in (standby, leader, worker):
            port.close()
            port.close()
        for future in waiting:
            assert isinstance(future.exception(PATIENCE_S), Closed)
    with pytest.raises(Closed):
        worker.submit(Envelope(b"late"))
    worker.emit(Envelope(b"late"))
    with pytest.raises(Closed):
        leader.publish_model(Envelope(b"late"))
