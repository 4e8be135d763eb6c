"""What a sender puts around a body costs the receiver nothing: headers, sizes, wrong queues."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest
from pika import BasicProperties
from pika.data import encode_short_string

from fluffle.broker.rabbitmq.envelopes import delivery_count
from fluffle.broker.topology import EVENTS, UPDATES
from fluffle.broker.transport import Delivery, Envelope
from tests.broker.conftest import PATIENCE_S, Ports, RabbitMQHarness

pytestmark = pytest.mark.rabbitmq


class Raw(BasicProperties):
    """Properties whose headers are these bytes, as no client library would write them."""

    def __init__(self, table: bytes) -> None:
        super().__init__()
        self.table = table

    def encode(self) -> list[bytes]:
        content_type: list[bytes] = []
        encode_short_string(content_type, "application/msgpack")
        flags = BasicProperties.FLAG_CONTENT_TYPE | BasicProperties.FLAG_HEADERS
        return [
            struct.pack(">H", flags),
            *content_type,
            struct.pack(">I", len(self.table)),
            self.table,
        ]


def field(kind: bytes, value: bytes) -> bytes:
    return b"\x01h" + kind + value


def lists_in_lists(depth: int) -> bytes:
    value = b""
    for _ in range(depth):
        value = b"A" + struct.pack(">I", len(value)) + value
    return b"\x01h" + value


#: Each of these ends a connection of pika's own. (NaN and infinity would, and RabbitMQ takes none.)
POISON: dict[str, bytes] = {
    "a date after the year 9999": field(b"T", struct.pack(">Q", 2**63)),
    "lists a thousand deep": lists_in_lists(1200),
}

#: These are read, and must not end who passes a copy on.
WILD: dict[str, dict[str, Any]] = {
    "a header that fills a frame": {"h": "x" * 130_000},
    "ten thousand headers": {str(i): i for i in range(10_000)},
    "the broker's own": {"x-delivery-count": 1000, "x-death": [{"count": 9}]},
    "the largest numbers": {"a": 2**63 - 1, "b": -(2**63)},
    "other kinds": {"a": [1, {"b": None}], "c": datetime(2026, 1, 1, tzinfo=UTC), "d": True},
    "our own, wrong": {"version": "newest", "run_id": [], "client": 7, "reason": "none"},
}


def send(
    harness: RabbitMQHarness, properties: BasicProperties, body: bytes, key: str = UPDATES
) -> None:
    """As somebody who uses no port of ours, and waits for the broker's confirm."""
    with closing(harness.connect()) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish(harness.topology.submit, key, body, properties, mandatory=True)


def received(leader: Any) -> Delivery:
    delivery = leader.receive(PATIENCE_S)
    assert delivery is not None
    return delivery


@pytest.fixture
def leader(rabbit: RabbitMQHarness, ports: Ports) -> Any:
    port = ports.leader(rabbit.broker)
    port.consume(8, 1000)
    return port


@pytest.mark.parametrize("name", sorted(POISON))
def test_properties_that_cannot_be_decoded_end_no_connection(
    rabbit: RabbitMQHarness, leader: Any, name: str
) -> None:
    # Given a message that would end a connection of pika's own
    send(rabbit, Raw(POISON[name]), b"poison")
    # When it is received and rejected
    delivery = received(leader)
    leader.reject(delivery, "undecodable")
    # Then it came once, with its body, and the connection has never been away
    assert (delivery.envelope.body, delivery.delivery_count) == (b"poison", 0)
    assert [e.headers for e in rabbit.rejected()] == [{"reason": "undecodable"}]
    assert rabbit.status == []


@pytest.mark.parametrize("name", sorted(WILD))
def test_a_copy_of_wild_headers_is_taken_by_the_broker(
    rabbit: RabbitMQHarness, leader: Any, name: str
) -> None:
    # Given a message with headers that are nobody's business
    properties = BasicProperties(content_type="application/msgpack", headers=WILD[name])
    send(rabbit, properties, b"wild")
    # When it is rejected
    delivery = received(leader)
    leader.reject(delivery, "wrong_type")
    # Then a person finds a copy with our reason, and the broker has closed nothing
    assert delivery.delivery_count == 0, "the sender's word for it"
    assert [e.headers["reason"] for e in rabbit.rejected()] == ["wrong_type"]
    assert rabbit.status == []


def test_texts_that_are_no_text_are_left_out_and_control_characters_replaced(
    rabbit: RabbitMQHarness, leader: Any
) -> None:
    strange = BasicProperties(
        content_type="application/msgpack", type=b"\xff\xfe", message_id="a\x1b[2J\nb" + "ü" * 100
    )
    send(rabbit, strange, b"strange")
    delivery = received(leader)
    leader.reject(delivery, "wrong_type")
    assert delivery.envelope.type == ""
    assert delivery.envelope.message_id.startswith("a?[2J?b")
    assert len(rabbit.rejected()) == 1


def test_another_content_type_or_encoding_is_not_ours(rabbit: RabbitMQHarness, leader: Any) -> None:
    for content_type, encoding in (("application/json", None), ("application/msgpack", "gzip")):
        send(
            rabbit,
            BasicProperties(
                content_type=content_type, content_encoding=encoding, type="client-update"
            ),
            b"other",
        )
        assert received(leader).envelope.type == ""


def test_a_body_beyond_the_limit_is_not_kept_and_the_broker_sets_it_aside(
    rabbit: RabbitMQHarness, leader: Any, until: Callable[[Callable[[], bool]], None]
) -> None:
    # Given a message of many frames that is longer than we said we take, between two others
    long = bytes(range(256)) * 4096
    ours = BasicProperties(content_type="application/msgpack", type="client-update")
    for body in (b"before", long, b"x" * 1000):
        send(rabbit, ours, body)
    # When they are received, and the long one is rejected
    before, cut, after = (received(leader) for _ in range(3))
    leader.reject(cut, "too_large")
    # Then its hash is known, the others are whole, and the broker has moved it in full
    assert (cut.envelope.body, cut.envelope.too_large) == (b"", hashlib.sha256(long).hexdigest())
    assert [d.envelope.body for d in (before, after)] == [b"before", b"x" * 1000]
    assert not before.envelope.too_large
    found: list[Envelope] = []
    until(lambda: bool(found or found.extend(rabbit.rejected()) or found))
    assert [e.body for e in found] == [long]
    leader.ack([before, after])


def test_an_event_is_what_comes_from_the_events_whatever_it_says_it_is(
    rabbit: RabbitMQHarness, leader: Any
) -> None:
    # Given an event sent as an update, and an update sent as an event
    for kind, key in (("event", UPDATES), ("client-update", EVENTS)):
        send(rabbit, BasicProperties(content_type="application/msgpack", type=kind), b"x", key)
    # Then each is what its queue makes it
    got = {d.envelope.type: d.is_event for d in (received(leader), received(leader))}
    assert got == {"event": False, "client-update": True}


def test_an_event_of_any_size_fills_no_memory(rabbit: RabbitMQHarness, leader: Any) -> None:
    send(rabbit, BasicProperties(type="event"), bytes(1024**2), EVENTS)
    assert received(leader).envelope.body == b""


@pytest.mark.parametrize(
    ("headers", "count"),
    [
        ({"x-delivery-count": 3}, 3),
        ({"x-delivery-count": 1, "x-acquired-count": 4}, 4),
        ({"x-acquired-count": 2}, 2),
        ({}, 1),
        ({"x-delivery-count": "many", "x-acquired-count": -1}, 1),
    ],
)
def test_a_message_that_is_delivered_again_was_delivered_before(
    headers: dict[str, Any], count: int
) -> None:
    assert delivery_count(BasicProperties(headers=headers)) == count
