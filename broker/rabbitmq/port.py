"""The base of both RabbitMQ ports: two connections, one condition, one way to fail.

Publishing and consuming have a connection each: a broker that is short of memory or disk stops
reading from connections that publish, and acks must still get through.
"""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from functools import partial

import pika

from fluffle.broker.errors import Closed
from fluffle.broker.rabbitmq.address import alternatives, parameters_of, secrets_of
from fluffle.broker.rabbitmq.connection import Link
from fluffle.broker.rabbitmq.credentials import Credentials, Refusals
from fluffle.broker.topology import Topology


@dataclass(frozen=True)
class Settings:
    """How to reach a broker."""

    url: str
    topology: Topology
    role_name: str | None
    connect_timeout_s: float
    heartbeat_s: int

    def parameters(self, connection_name: str) -> pika.URLParameters:
        """To the first host. Raises: UserError where the URL is none, or a certificate."""
        return self._to(alternatives(self.url)[0], connection_name)

    def all_parameters(self, connection_name: str) -> list[pika.URLParameters]:
        """To each host, in the order in which they are tried. Raises: as ``parameters``."""
        return [self._to(url, connection_name) for url in alternatives(self.url)]

    def _to(self, url: str, connection_name: str) -> pika.URLParameters:
        parameters = parameters_of(url)
        if parameters.heartbeat is None:
            parameters.heartbeat = self.heartbeat_s
        if parameters.blocked_connection_timeout is None:
            parameters.blocked_connection_timeout = 300.0
        parameters.connection_attempts = 1  # the link tries again, visibly
        parameters.client_properties = {"connection_name": connection_name}
        return parameters

    def credentials(self, connection_name: str) -> list[Credentials]:
        """The same, read again whenever its files have changed. Raises: as ``parameters``."""
        return [
            Credentials(partial(self._to, url, connection_name), secrets_of(url))
            for url in alternatives(self.url)
        ]


class Port:
    """Two links that are up, or an error."""

    def __init__(self, settings: Settings, role: str) -> None:
        """Raises: BrokerUnreachable, AccessRefused, UserError."""
        self._changed = threading.Condition()
        self._topology = settings.topology
        self._closed = False
        self._failure: Exception | None = None
        name = f"{settings.role_name or role}@{socket.gethostname()}"
        refusals = Refusals()
        self._consuming, self._publishing = (
            Link(
                settings.credentials(f"{name} {what}"),
                f"{name} {what}",
                self._fail,
                self._changed,
                refusals,
            )
            for what in ("consuming", "publishing")
        )
        # What the broker vouches for: with certificates it is not ours to say.
        credentials = settings.parameters(name).credentials
        self._user: str | None = getattr(credentials, "username", None)
        self._consuming.open(settings.connect_timeout_s)
        try:
            self._publishing.open(settings.connect_timeout_s)
        except Exception:
            self._consuming.close()
            raise

    @property
    def user(self) -> str | None:
        """Whom the broker takes us for; None where a certificate says it."""
        return self._user

    @property
    def server_version(self) -> str:
        """As the server calls itself: "4.3.6"."""
        return self._consuming.server_version

    def waits(self) -> str:
        """What this port waits for, for a probe; nothing where it is connected. From any thread."""
        away = [link.title for link in (self._consuming, self._publishing) if not link.connected]
        return f"no connection to the broker: {', '.join(away)}" if away else ""

    def close(self) -> None:
        """What is unacked goes back. May be called twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._publishing.close()
        self._consuming.close()

    def _check(self) -> None:
        """Raises what a caller shall not wait beyond. The caller holds ``changed``."""
        if self._closed:
            raise Closed
        if self._failure is not None:
            raise self._failure

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
