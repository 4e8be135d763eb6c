"""A federation as a mere onlooker sees it: depths, the lead, the newest model.

Passive in every way: nothing is declared, nothing is consumed away (a stream is read, not emptied),
nothing is published. So it sees what waits, and not what an aggregator holds unacked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pika.adapters.blocking_connection import BlockingChannel
from pika.spec import Basic, BasicProperties

from fluffle.broker.admin.session import NoAnswer, Session, open_session
from fluffle.broker.memory_queues import Newest
from fluffle.broker.rabbitmq import envelopes
from fluffle.broker.topology import Topology
from fluffle.broker.transport import Envelope

#: Not all models of the store were read.
NEWER = "models newer than that"
#: The first model of a stream comes within this, the others of its last chunk faster. A busy run
#: adds to them without end.
_FIRST_S, _NEXT_S, _ALL_S = 2.0, 0.25, 3.0


@dataclass
class FederationView:
    """An onlooker's findings; where something could not be seen, the reason."""

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
        view = FederationView(session.where)
        view.updates = _depth(session, names.updates.name, view)
        view.rejected = _depth(session, names.rejected.name, view)
        view.led = _is_led(session, names.aggregator.name, view)
        view.newest = _newest(session, names.latest_model.name, view)
    return view


def _ask(
    session: Session, action: Callable[[BlockingChannel], None], last: bool = False
) -> str | None:
    """As ``Session.ask``, and no answer is a refusal as well."""
    try:
        return session.ask(action, last)
    except NoAnswer as error:
        return str(error)


def _depth(session: Session, queue: str, view: FederationView) -> int | None:
    depths: list[int] = []

    def ask(channel: BlockingChannel) -> None:
        depths.append(channel.queue_declare(queue, passive=True).method.message_count)

    refusal = _ask(session, ask)
    if refusal is not None:
        view.unseen.append(f"{queue} ({refusal})")
    return depths[0] if depths else None


def _is_led(session: Session, queue: str, view: FederationView) -> bool | None:
    """Somebody subscribes to the leader's lock, or nobody, or it is not there."""
    consumers: list[int] = []

    def ask(channel: BlockingChannel) -> None:
        consumers.append(channel.queue_declare(queue, passive=True).method.consumer_count)

    refusal = _ask(session, ask)
    if refusal is None:
        return consumers[0] > 0
    if refusal.startswith("NOT_FOUND"):
        return False
    view.unseen.append(f"who leads ({refusal})")
    return None


def _newest(session: Session, stream: str, view: FederationView) -> Envelope | None:
    """The newest model that came in time."""
    newest, waiting, more = Newest(), [0], [False]

    def read(channel: BlockingChannel) -> None:
        waiting[0] = channel.queue_declare(stream, passive=True).method.message_count
        began = time.monotonic()
        until = began + _FIRST_S

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
            more[0] = until > began + _ALL_S

        channel.basic_qos(prefetch_count=1)
        channel.basic_consume(stream, on_message, arguments={"x-stream-offset": "last"})
        while not more[0] and (left := until - time.monotonic()) > 0:
            session.connection.process_data_events(time_limit=left)

    refusal = _ask(session, read, last=True)
    if newest.envelope is None:
        if refusal is None and waiting[0]:
            refusal = f"none came within {_FIRST_S:.0f} s"
        if refusal is not None:
            view.unseen.append(f"the newest model ({refusal})")
    elif more[0] or refusal is not None:
        view.unseen.append(f"{NEWER} ({refusal or 'they keep coming'})")
    return newest.envelope
