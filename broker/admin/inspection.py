"""What somebody sees of a federation who only looks: depths, the lead, the newest model.

Passive in every way: nothing is declared, nothing is consumed away (a stream is read, not emptied),
nothing is published. So it sees what waits, and not what an aggregator holds unacked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.spec import Basic, BasicProperties

from fluffle.broker.admin.session import asked, open_session
from fluffle.broker.memory_queues import Newest
from fluffle.broker.rabbitmq import envelopes
from fluffle.broker.topology import Topology
from fluffle.broker.transport import Envelope

#: The first model of a stream comes within this, the others of its last chunk faster.
_FIRST_S, _NEXT_S = 2.0, 0.25


@dataclass
class FederationView:
    """What was seen, and of what was not, why."""

    where: str
    #: Messages that wait in ``updates`` and in ``updates.rejected``; None: could not be seen.
    updates: int | None = None
    rejected: int | None = None
    #: Whether an aggregator leads.
    led: bool | None = None
    #: The newest model of the late joiners' store.
    newest: Envelope | None = None
    unseen: list[str] = field(default_factory=list)


def inspect_federation(url: str, federation: str = "fluffle") -> FederationView:
    """Look at a federation for a few seconds.

    Raises: BrokerUnreachable, AccessRefused, UserError where the URL is none.
    """
    names = Topology(federation)
    with open_session(url, names, "verify") as session:
        connection = session.connection
        view = FederationView(session.where)
        view.updates = _depth(connection, names.updates.name, view)
        view.rejected = _depth(connection, names.rejected.name, view)
        view.led = _is_led(connection, names.aggregator.name, view)
        newest = Newest()
        refusal = asked(connection, _read(connection, names.latest_model.name, newest))
        if refusal is not None:
            view.unseen.append(f"the newest model ({refusal})")
        view.newest = newest.envelope
    return view


def _depth(connection: pika.BlockingConnection, queue: str, view: FederationView) -> int | None:
    depths: list[int] = []

    def ask(channel: BlockingChannel) -> None:
        depths.append(channel.queue_declare(queue, passive=True).method.message_count)

    refusal = asked(connection, ask)
    if refusal is not None:
        view.unseen.append(f"{queue} ({refusal})")
    return depths[0] if depths else None


def _is_led(connection: pika.BlockingConnection, queue: str, view: FederationView) -> bool | None:
    """The leader's lock is there and locked, or not there: all else says nothing."""
    refusal = asked(connection, lambda channel: channel.queue_declare(queue, passive=True))
    if refusal is None or refusal.startswith("RESOURCE_LOCKED"):
        return True
    if refusal.startswith("NOT_FOUND"):
        return False
    view.unseen.append(f"who leads ({refusal})")
    return None


def _read(
    connection: pika.BlockingConnection, stream: str, newest: Newest
) -> Callable[[BlockingChannel], None]:
    def read(channel: BlockingChannel) -> None:
        until = time.monotonic() + _FIRST_S

        def on_message(
            channel: BlockingChannel,
            method: Basic.Deliver,
            properties: BasicProperties,
            body: bytes,
        ) -> None:
            nonlocal until
            newest.offer(envelopes.envelope(properties, body))
            channel.basic_ack(method.delivery_tag)
            until = time.monotonic() + _NEXT_S

        channel.basic_qos(prefetch_count=1)
        channel.basic_consume(stream, on_message, arguments={"x-stream-offset": "last"})
        while (left := until - time.monotonic()) > 0:
            connection.process_data_events(time_limit=left)

    return read
