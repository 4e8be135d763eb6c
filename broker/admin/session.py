"""A connection of somebody who only asks, and how a broker says no."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError, ChannelClosedByBroker, ConnectionBlockedTimeout

from fluffle.broker.errors import BrokerUnreachable
from fluffle.broker.rabbitmq.explain import describe, refusal_of, root_cause
from fluffle.broker.rabbitmq.port import Settings
from fluffle.broker.topology import Topology

#: Longer than any answer takes, shorter than a person waits.
_ANSWER_S = 4.0


@dataclass(frozen=True)
class Session:
    """A connection of somebody who only looks."""

    connection: pika.BlockingConnection
    where: str
    user: str


@contextmanager
def open_session(url: str, names: Topology, name: str) -> Iterator[Session]:
    """Connect for a few seconds.

    Raises: BrokerUnreachable, AccessRefused, UserError where the URL is none.
    """
    parameters = Settings(url, names, None, _ANSWER_S, 20).parameters(name)
    parameters.socket_timeout = parameters.blocked_connection_timeout = _ANSWER_S
    parameters.stack_timeout = 2 * _ANSWER_S
    where = f"{parameters.host}:{parameters.port}, virtual host {parameters.virtual_host}"
    user = getattr(parameters.credentials, "username", "")
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # what it would say, we say
    try:
        with closing(pika.BlockingConnection(parameters)) as connection:
            yield Session(connection, where, user)
    except ConnectionBlockedTimeout:
        raise BrokerUnreachable(
            f"RabbitMQ at {where} has no memory or disk left: it blocks publishers"
        ) from None
    except (AMQPError, OSError) as error:
        cause = root_cause(error)
        raise refusal_of(cause, where, user) or BrokerUnreachable(
            f"no RabbitMQ at {where}: {describe(cause)}"
        ) from None


def asked(
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
