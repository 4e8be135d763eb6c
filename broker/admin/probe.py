"""A probe of a broker: is it there, which version is it, what may this user do.

Leaves nothing behind: what it declares is exclusive and goes with its connection, what it
publishes has a routing key that no queue is bound by.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from pika.adapters.blocking_connection import BlockingChannel

from fluffle.broker.admin.session import Session, open_session
from fluffle.broker.topology import Queue, Topology
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


def probe(url: str, federation: str = "fluffle") -> Probe:
    """Look at a broker, in a few seconds at most.

    Raises: BrokerUnreachable, AccessRefused, UserError where the URL is none.
    """
    names = Topology(federation)
    with open_session(url, names, "doctor") as session:
        return _look(session, names)


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
        limit = re.search(r"max size (\d+)", told or "")
        largest = int(limit[1]) if limit else None
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
