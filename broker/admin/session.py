"""A connection of somebody who only asks, and how a broker says no, or nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import (
    AMQPError,
    ChannelClosedByBroker,
    ConnectionBlockedTimeout,
    ConnectionClosedByBroker,
)

from fluffle.broker.errors import BrokerUnreachable
from fluffle.broker.rabbitmq.connection import where_of
from fluffle.broker.rabbitmq.explain import describe, refusal_of, root_cause
from fluffle.broker.rabbitmq.port import Settings
from fluffle.broker.topology import Topology

#: Longer than any answer takes, shorter than a person waits.
ANSWER_S = 4.0


class NoAnswer(Exception):
    """The broker is there and did not answer in time; its connection is of no more use."""

    def __init__(self) -> None:
        super().__init__(f"no answer within {ANSWER_S:.0f} s")


class Session:
    """A connection of somebody who only looks."""

    def __init__(self, connection: pika.BlockingConnection, where: str, user: str) -> None:
        self.connection = connection
        self.where = where
        self.user = user
        self._useless = False

    def ask(self, action: Callable[[BlockingChannel], None], last: bool = False) -> str | None:
        """Why the broker refuses this; None where it does not. It closes a channel to refuse.

        last: the broker may close the connection for it. It does to who reads a stream: pika
            rejects what comes while a channel is closed, and streams know no rejection.
        Raises: NoAnswer, at once where an earlier question got none.
        """
        with self._in_time():
            channel = self.connection.channel()
            channel.confirm_delivery()
            try:
                action(channel)
            except ChannelClosedByBroker as error:
                return str(error.reply_text)
            with suppress(*(ConnectionClosedByBroker,) if last else ()):
                channel.close()
        return None

    def close(self) -> None:
        """Say goodbye, unless the broker does not answer anyway."""
        if self.connection.is_open:
            with suppress(NoAnswer), self._in_time():
                self.connection.close()
        if self._useless and self.connection._impl._transport is not None:
            self.connection._impl._transport.abort()

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """pika waits for answers without end; an exception in its loop ends the wait."""
        if self._useless:
            raise NoAnswer
        loop = self.connection._impl.ioloop
        alarm = loop.call_later(ANSWER_S, self._give_up)
        try:
            yield
        finally:
            if self.connection.is_open:
                loop.remove_timeout(alarm)

    def _give_up(self) -> None:
        self._useless = True
        raise NoAnswer


@contextmanager
def open_session(url: str, names: Topology, name: str) -> Iterator[Session]:
    """Connect for a few seconds.

    Raises: BrokerUnreachable, AccessRefused, UserError where the URL is none.
    """
    hosts = Settings(url, names, None, ANSWER_S, 20).all_parameters(name)
    for host in hosts:
        host.socket_timeout = host.blocked_connection_timeout = ANSWER_S
        host.stack_timeout = 2 * ANSWER_S
    where = where_of(hosts)
    user = getattr(hosts[0].credentials, "username", "")
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # what it would say, we say
    session = None
    try:
        session = Session(pika.BlockingConnection(hosts), where, user)
        yield session
        session.close()
    except NoAnswer as error:
        raise BrokerUnreachable(
            f"RabbitMQ at {where} is there, and gave {error}: it is busy, or the network is slow"
        ) from None
    except ConnectionBlockedTimeout:
        raise BrokerUnreachable(
            f"RabbitMQ at {where} has no memory or disk left: it blocks publishers"
        ) from None
    except (AMQPError, OSError) as error:
        cause = root_cause(error)
        if session is not None:
            raise BrokerUnreachable(
                f"the connection to RabbitMQ at {where} broke: {describe(cause)}"
            ) from None
        raise refusal_of(cause, where, user) or BrokerUnreachable(
            f"no RabbitMQ at {where}: {describe(cause)}"
        ) from None
