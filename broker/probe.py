"""What a broker says to somebody who only looks: is it there, which one, what may this user do.

Leaves nothing behind: what it declares is exclusive and goes with its connection, what it
publishes has a routing key that no queue is bound by.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError, ChannelClosedByBroker, ConnectionBlockedTimeout

from broker.connection import describe, refusal_of, root_cause
from broker.errors import BrokerUnreachable
from broker.port import Settings
from broker.topology import MIB, Queue, Topology

#: RabbitMQ 4 takes no larger message unless it is told to.
COMMON_LIMIT = 16 * MIB
#: A routing key that nobody is bound by.
_NOBODY = "doctor"
#: Longer than any answer takes, shorter than a person waits.
_ANSWER_S = 4.0


@dataclass(frozen=True)
class Probe:
    """What was found out."""

    where: str
    user: str
    version: str
    #: There is a federation of this name: an aggregator has led here before.
    federation: bool
    may_train: bool
    #: None without a federation: nobody is told before there is one.
    may_lead: bool | None
    #: Updates that wait for the aggregator; None without a federation.
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
    parameters = Settings(url, names, None, _ANSWER_S, 20, _silent).parameters("doctor")
    parameters.socket_timeout = parameters.blocked_connection_timeout = _ANSWER_S
    parameters.stack_timeout = 2 * _ANSWER_S
    where = f"{parameters.host}:{parameters.port}, virtual host {parameters.virtual_host}"
    user = getattr(parameters.credentials, "username", "")
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # what it would say, we say
    try:
        with closing(pika.BlockingConnection(parameters)) as connection:
            return _look(connection, names, where, user)
    except ConnectionBlockedTimeout:
        raise BrokerUnreachable(
            f"RabbitMQ at {where} has no memory or disk left: it blocks publishers"
        ) from None
    except (AMQPError, OSError) as error:
        cause = root_cause(error)
        raise refusal_of(cause, where, user) or BrokerUnreachable(
            f"no RabbitMQ at {where}: {describe(cause)}"
        ) from None


def _look(connection: pika.BlockingConnection, names: Topology, where: str, user: str) -> Probe:
    asked = partial(_asked, connection)
    depths: list[int] = []
    exists = asked(_depth(names.updates, depths)) is None
    submits = exists and asked(_publish(names.submit, b"")) is None
    mailboxes = (names.mailbox(name) for name in (user, "worker-doctor", "evaluator-doctor"))
    receives = any(asked(_declare(mailbox)) is None for mailbox in mailboxes)
    model = names.global_model
    kind = names.exchanges[model]
    leads = exists and asked(lambda c: c.exchange_declare(model, kind, durable=True)) is None
    largest, takes_large = None, False
    if submits or leads:
        large = _publish(names.submit if submits else names.assign, bytes(COMMON_LIMIT + 1))
        told = asked(large)
        takes_large = told is None
        limit = re.search(r"max size (\d+)", told or "")
        largest = int(limit[1]) if limit else None
    return Probe(
        where=where,
        user=user,
        version=str(connection._impl.server_properties.get("version", "?")),
        federation=exists,
        may_train=receives and (submits or not exists),
        may_lead=leads if exists else None,
        waiting=depths[0] if exists else None,
        largest_message=largest,
        takes_large=takes_large,
    )


def _asked(
    connection: pika.BlockingConnection, action: Callable[[BlockingChannel], None]
) -> str | None:
    """Why the broker refuses this; None where it does not. It closes a channel to refuse."""
    channel = connection.channel()
    channel.confirm_delivery()
    try:
        action(channel)
    except ChannelClosedByBroker as error:
        return str(error.reply_text)
    channel.close()
    return None


def _depth(queue: Queue, depths: list[int]) -> Callable[[BlockingChannel], None]:
    def ask(channel: BlockingChannel) -> None:
        depths.append(channel.queue_declare(queue.name, passive=True).method.message_count)

    return ask


def _publish(exchange: str, body: bytes) -> Callable[[BlockingChannel], None]:
    return lambda channel: channel.basic_publish(exchange, _NOBODY, body)


def _declare(queue: Queue) -> Callable[[BlockingChannel], None]:
    return lambda channel: channel.queue_declare(
        queue.name, durable=queue.durable, exclusive=True, arguments=dict(queue.arguments)
    )


def _silent(text: str) -> None:
    """Nobody wants to know."""
