"""A probe of a broker: is it there, which version is it, what may this user do.

Leaves nothing behind: what it declares is exclusive and goes with its connection, what it
publishes has a routing key that no queue is bound by.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from pika.adapters.blocking_connection import BlockingChannel

from fluffle.broker.admin.session import NoAnswer, Session, open_session
from fluffle.broker.topology import Queue, Topology
from fluffle.schemas.codec import MAX_MESSAGE_BYTES
from fluffle.schemas.sizes import MIB

#: RabbitMQ 4 takes no larger message unless it is told to.
COMMON_LIMIT = 16 * MIB
#: A routing key that nobody is bound by.
_NOBODY = "doctor"


@dataclass(frozen=True)
class Probe:
    """What was found out."""

    where: str
    user: str
    version: str
    #: There is a federation of this name: an aggregator has led here before.
    federation: bool
    may_train: bool
    may_lead: bool
    #: Updates that wait for the aggregator; None without a federation, or where the broker does
    #: not let this user see (4.3 asks for a right even for that).
    waiting: int | None
    #: The largest message in bytes: exact where the broker has told. None: nobody knows.
    largest_message: int | None
    #: A message of 16 MiB and one byte was taken.
    takes_large: bool
    #: A message of the size that was asked for was taken; None: nobody asked, or nobody knows.
    takes_asked: bool | None = None


def probe(url: str, federation: str = "fluffle", size: int = 0) -> Probe:
    """Look at a broker, in a few seconds at most.

    size: also try whether it takes a message of so many bytes.
    Raises: BrokerUnreachable, AccessRefused, UserError where the URL is none.
    """
    names = Topology(federation)
    with open_session(url, names, "doctor") as session:
        seen = _look(session, names)
        return _try_size(session, names, seen, size) if size else seen


def _try_size(session: Session, names: Topology, seen: Probe, size: int) -> Probe:
    """A broker looks at a message's size first, and then whether there is such an exchange."""
    if size > MAX_MESSAGE_BYTES:  # RabbitMQ 4 ends the connection for it
        return replace(seen, takes_asked=False)
    if seen.largest_message is not None:
        return replace(seen, takes_asked=size <= seen.largest_message)
    try:
        told = session.ask(_publish(names.submit, bytes(size)), last=True)
    except NoAnswer:
        return seen
    limit = _limit_in(told)
    return replace(seen, takes_asked=limit is None, largest_message=limit)


def _limit_in(told: str | None) -> int | None:
    limit = re.search(r"max size (\d+)", told or "")
    return int(limit[1]) if limit else None


def _look(session: Session, names: Topology) -> Probe:
    ask, user = session.ask, session.user
    depths: list[int] = []
    # Who has no right on any of them is told nothing of them by 4.3, and counts as without.
    seen = [ask(_depth(names.updates, depths)), *(ask(_exists(x)) for x in names.exchanges)]
    exists = None in seen
    submits = exists and ask(_publish(names.submit, b"")) is None
    mailboxes = (names.mailbox(name) for name in (user, "worker-doctor", "evaluator-doctor"))
    receives = any(ask(_declare(mailbox)) is None for mailbox in mailboxes)
    model = names.global_model
    kind = names.exchanges[model]
    if exists:
        leads = ask(lambda c: c.exchange_declare(model, kind, durable=True)) is None
        # Where the operators declare, whoever may issue turns leads.
        leads = leads or ask(_publish(names.assign, b"")) is None
    else:
        # What is not there can be deleted by whoever might make it, and by nobody else.
        leads = ask(lambda c: c.exchange_delete(names.dead_letter, if_unused=True)) is None
    largest, takes_large = None, False
    if exists and (submits or leads):
        large = _publish(names.submit if submits else names.assign, bytes(COMMON_LIMIT + 1))
        told = ask(large)
        takes_large = told is None
        largest = _limit_in(told)
    return Probe(
        where=session.where,
        user=user,
        version=str(session.connection._impl.server_properties.get("version", "?")),
        federation=exists,
        may_train=receives and (submits or not exists),
        may_lead=leads,
        waiting=depths[0] if depths else None,
        largest_message=largest,
        takes_large=takes_large,
    )


def _depth(queue: Queue, depths: list[int]) -> Callable[[BlockingChannel], None]:
    def ask(channel: BlockingChannel) -> None:
        depths.append(channel.queue_declare(queue.name, passive=True).method.message_count)

    return ask


def _exists(exchange: str) -> Callable[[BlockingChannel], None]:
    def ask(channel: BlockingChannel) -> None:
        channel.exchange_declare(exchange, passive=True)

    return ask


def _publish(exchange: str, body: bytes) -> Callable[[BlockingChannel], None]:
    return lambda channel: channel.basic_publish(exchange, _NOBODY, body)


def _declare(queue: Queue) -> Callable[[BlockingChannel], None]:
    return lambda channel: channel.queue_declare(
        queue.name, durable=queue.durable, exclusive=True, arguments=dict(queue.arguments)
    )
