"""One connection to RabbitMQ that keeps itself alive, in one I/O thread.

The thread runs pika's loop from ``open`` to ``close`` and never anybody else's code, so heartbeats
go out whatever the callers do. Other threads reach it through ``call`` only. Everything that lives
on a connection is a robust channel (``robust_channel.py``), which opens again with every new
connection.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import pika
from pika.adapters.select_connection import IOLoop

from fluffle.broker.errors import BrokerUnreachable
from fluffle.broker.rabbitmq.credentials import Credentials, Refusals
from fluffle.broker.rabbitmq.explain import describe, refusal_of, root_cause
from fluffle.broker.rabbitmq.pika_limits import Connection
from fluffle.schemas.errors import UserError

_log = logging.getLogger(__name__)
#: A broker may be away for days: a few of many attempts to reach it are logged in so many seconds.
_AWAY_EVERY_S = 600.0
#: From one host of several to the next, in seconds.
_NEXT_HOST_S = 0.1
#: Whoever was refused looks so often whether a file with its secrets has changed, in seconds.
_LOOK_S = 2.0


class Backoff:
    """Growing pauses with jitter, in seconds."""

    def __init__(self, first: float = 0.2, most: float = 10.0) -> None:
        self._first, self._most = first, most
        self._failures = 0

    def next(self) -> float:
        """The next pause; on average half as long again as twice the one before it."""
        pause = min(self._most, self._first * 2.0**self._failures)
        self._failures = min(self._failures + 1, 30)
        return pause * random.SystemRandom().uniform(0.5, 1.0)

    def reset(self) -> None:
        """It worked: start over."""
        self._failures = 0


def where_of(hosts: Sequence[pika.URLParameters]) -> str:
    """For a person: hosts, ports and the virtual host, which is everywhere the same."""
    places = ", ".join(f"{one.host}:{one.port}" for one in hosts)
    return f"{places}, virtual host {hosts[0].virtual_host}"


def refused_backoff() -> Backoff:
    """Whom the broker refuses tries again after some seconds, and every ten minutes in the end."""
    return Backoff(first=4.0, most=1200.0)


class Attached(Protocol):
    """What hangs on a link. That a connection is lost, its channels are told by pika."""

    def link_up(self) -> None:
        """There is a connection (again). Called in the I/O thread."""
        ...


class Link:
    """A connection that comes back."""

    def __init__(
        self,
        hosts: Sequence[Credentials],
        title: str,
        fail: Callable[[Exception], None],
        changed: threading.Condition,
        refusals: Refusals,
    ) -> None:
        """
        hosts: how to reach each host of the broker; they are tried in turn.
        title: the connection's name in RabbitMQ's UI and in the log.
        fail: is told what trying again cannot mend; that the I/O thread has died is a bug.
        changed: guards what its channels share with other threads, and announces it.
        refusals: what a person was told that the broker refuses us for.
        """
        self.title = title
        self.fail = fail
        self.changed = changed
        self._told = ""
        self._refusals = refusals
        self._hosts = hosts
        #: Which of them is tried next, or is connected to.
        self._turn = 0
        self._parameters = self._credentials.current()
        self._everywhere = where_of([host.current() for host in hosts])
        self.connection: pika.SelectConnection | None = None
        #: The server's version as it calls itself, once there was a connection.
        self.server_version = ""
        self._attached: list[Attached] = []
        self._loop = IOLoop()
        self._thread = threading.Thread(target=self._run, name=title, daemon=True)
        self._backoff = Backoff()
        self._refused_backoff = refused_backoff()
        self._settled = threading.Event()  # connected for the first time, or refused
        self._refusal: Exception | None = None
        self._last_error = ""
        self._closing = False
        self._lock = threading.Lock()  # guards the loop's life against call()
        self._loop_lives = True

    @property
    def where(self) -> str:
        """The host that is connected to, or was tried last."""
        return where_of([self._parameters])

    @property
    def _credentials(self) -> Credentials:
        return self._hosts[self._turn % len(self._hosts)]

    @property
    def is_up(self) -> bool:
        """True while there is a connection. In the I/O thread only."""
        return self.connection is not None and self.connection.is_open

    @property
    def connected(self) -> bool:
        """The same for other threads; it may be over by now."""
        connection = self.connection
        return connection is not None and bool(connection.is_open)

    @property
    def heartbeat_s(self) -> float:
        """What was agreed with the broker; two missed ones end a connection."""
        negotiated = self.connection.params.heartbeat if self.connection else None
        return float(negotiated or self._parameters.heartbeat or 60.0)

    def open(self, timeout_s: float) -> None:
        """Connect, trying again for ``timeout_s``. Raises: BrokerUnreachable, AccessRefused."""
        self._thread.start()
        self.call(self._connect)
        settled = self._settled.wait(timeout_s)
        if self._refusal is not None or not settled:
            self.close()
            raise self._refusal or BrokerUnreachable(
                f"no RabbitMQ at {self._everywhere}, tried for {timeout_s:.0f} s: "
                f"{self._last_error}"
            )

    def warn(self, text: str) -> None:
        """Log what a person may have to mend, unless it is what was logged last."""
        self._log(logging.WARNING, text)

    def inform(self, text: str) -> None:
        """Log that something is well again, unless it is what was logged last."""
        self._log(logging.INFO, text)

    def _log(self, level: int, text: str, kind: str | None = None) -> None:
        if text != self._told:
            self._told = text
            limit = {"kind": f"{self.title}: {kind}", "every_s": _AWAY_EVERY_S} if kind else None
            _log.log(level, "%s: %s", self.title, text, extra=limit)

    def attach(self, attached: Attached) -> None:
        """This opens with every connection from now on, and at once if there is one."""

        def attach() -> None:
            self._attached.append(attached)
            if self.is_up:
                attached.link_up()

        self.call(attach)

    def call(self, callback: Callable[[], None]) -> None:
        """Run this in the I/O thread, soon. After ``close`` it is dropped."""
        with self._lock:
            if self._loop_lives:
                self._loop.add_callback_threadsafe(callback)

    def later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Run this in the I/O thread after a pause. Called in the I/O thread only."""
        self._loop.call_later(delay_s, callback)

    def close(self) -> None:
        """End the connection and the thread. What was called before is done first."""
        self.call(self._close)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(5.0)

    def _run(self) -> None:
        try:
            self._run_loop()
        except Exception as error:
            self._refusal = error
            self._settled.set()
            self.fail(error)
            raise
        finally:
            with self._lock:
                self._loop_lives = False
            self._loop.close()

    def _run_loop(self) -> None:
        while True:
            try:
                self._loop.start()
                return
            except ValueError as error:
                # pika's word for a connection that was reset as soon as it was made; the attempt
                # is over when its time is (stack_timeout, 15 s), and then there is another.
                if self.connection is not None:
                    raise
                self.warn(f"no connection to {self.where} ({describe(error)})")

    def _connect(self) -> None:
        if not self._closing:
            try:
                self._parameters = self._credentials.current()
            except UserError as error:
                self._refuse(error)
                return
            Connection(
                self._parameters,
                on_open_callback=self._opened,
                on_open_error_callback=self._not_opened,
                on_close_callback=self._lost,
                custom_ioloop=self._loop,
            )

    def _opened(self, connection: pika.SelectConnection) -> None:
        if self._closing:
            connection.close()
            return
        if self._settled.is_set():
            self.inform("connected again")
        self.connection = connection
        self.server_version = str((connection.server_properties or {}).get("version", ""))
        self._backoff.reset()
        self._refused_backoff.reset()
        self._refusals.over()
        self._settled.set()
        connection.add_on_connection_blocked_callback(partial(self._blocked, True))
        connection.add_on_connection_unblocked_callback(partial(self._blocked, False))
        for attached in self._attached:
            attached.link_up()

    def _not_opened(self, _connection: object, error: BaseException) -> None:
        cause = root_cause(error)
        self._last_error = describe(cause)
        refusal = refusal_of(
            cause, self.where, getattr(self._parameters.credentials, "username", "")
        )
        if refusal is not None:
            self._refuse(refusal)
            return
        self._again(f"no connection to {self.where} ({self._last_error})")

    def _refuse(self, refusal: UserError) -> None:
        """The first time it is for who asked; later a person may mend it, while we wait."""
        if not self._settled.is_set():
            self._refusal = refusal
            self._settled.set()
        elif not self._closing:
            self._refusals.say(str(refusal))
            self._wait(time.monotonic() + self._refused_backoff.next())

    def _wait(self, until: float) -> None:
        left = until - time.monotonic()
        if left <= 0 or self._credentials.changed():
            self._connect()
        else:
            self.later(min(left, _LOOK_S), lambda: self._wait(until))

    def _lost(self, _connection: object, error: BaseException) -> None:
        self.connection = None
        if self._closing:
            self._loop.stop()
        else:
            self._again(f"connection to {self.where} lost ({describe(error)})")

    def _again(self, what: str) -> None:
        if not self._closing:
            self._turn += 1
            # Another host may be well: a pause comes after all of them.
            pause = _NEXT_HOST_S if self._turn % len(self._hosts) else self._backoff.next()
            self._log(logging.WARNING, f"{what}, trying again in {pause:.1f} s", kind=what)
            self.later(pause, self._connect)

    def _blocked(self, blocked: bool, _connection: object, _frame: object) -> None:
        if blocked:
            self.warn("the broker has no memory or disk left and blocks publishers")
        else:
            self.inform("the broker takes messages again from publishers")

    def _close(self) -> None:
        self._closing = True
        if self.connection is not None and self.connection.is_open:
            self.connection.close()  # _lost() then stops the loop
        elif self.connection is None or not self.connection.is_closing:
            self._loop.stop()
