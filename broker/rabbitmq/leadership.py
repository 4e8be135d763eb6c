"""The leader's lock: an exclusive queue belongs to the connection that declared it."""

from __future__ import annotations

import time

from pika.channel import Channel
from pika.exceptions import ChannelClosedByBroker

from fluffle.broker.rabbitmq.connection import Backoff, Link
from fluffle.broker.rabbitmq.robust_channel import RESOURCE_LOCKED, RobustChannel
from fluffle.broker.topology import Queue


class LeaderLock(RobustChannel):
    """Takes the lock, takes it again after a reconnect, and only then lets its followers open.

    The link's ``changed`` guards ``held``, ``refused``, ``usurped`` and what is sought.
    """

    def __init__(self, link: Link, queue: Queue) -> None:
        super().__init__(link)
        self.backoff = Backoff(first=0.1, most=1.0)
        #: This connection has the lock.
        self.held = False
        #: The broker has answered, since this lock is sought, that somebody has it.
        self.refused = False
        #: Somebody else has had it for longer than a dead connection of ours could.
        self.usurped = False
        self._queue = queue
        self._seeking = False
        self._has_led = False
        self._regain_until: float | None = None
        self._followers: list[RobustChannel] = []

    def seek(self) -> None:
        """Try to take the lock until ``rest``. The caller holds ``changed``."""
        if not self._seeking:
            self._seeking = True
            self.refused = False
            self.link.call(self._declare)

    def rest(self) -> None:
        """Try no more. The caller holds ``changed``."""
        self._seeking = False

    def follow(self, channel: RobustChannel) -> None:
        """This channel is open while the lock is held."""

        def follow() -> None:
            self._followers.append(channel)
            if self.held:
                channel.open()

        self.link.call(follow)

    def unfollow(self, channel: RobustChannel) -> None:
        """This channel is closed from now on."""

        def unfollow() -> None:
            self._followers.remove(channel)
            channel.close()

        self.link.call(unfollow)

    def opened(self, channel: Channel) -> None:
        """As ``RobustChannel``."""
        self._declare()

    def lost(self, error: BaseException) -> None:
        """As ``RobustChannel``."""
        with self.link.changed:
            self.held = False

    def broken(self, error: BaseException) -> bool:
        """As ``RobustChannel``: somebody has the lock, perhaps an old connection of ours.

        The broker ends such a connection when two heartbeats are missing.
        """
        if not isinstance(error, ChannelClosedByBroker) or error.reply_code != RESOURCE_LOCKED:
            return False
        with self.link.changed:
            self.refused = True
            self.link.changed.notify_all()
        if not self._has_led:
            self.link.inform("another aggregator leads, waiting for it to end")
            return True
        now = time.monotonic()
        if self._regain_until is None:
            self._regain_until = now + 2.5 * self.link.heartbeat_s + 1.0
            self.link.inform("taking the lead again")
        if now > self._regain_until:
            with self.link.changed:
                self.usurped = True
                self._wanted = False
                self.link.changed.notify_all()
        return True

    def _declare(self) -> None:
        if self._seeking and self.channel is not None and self.channel.is_open:
            queue = self._queue
            self.channel.queue_declare(
                queue.name, exclusive=True, arguments=dict(queue.arguments), callback=self._locked
            )

    def _locked(self, _frame: object) -> None:
        with self.link.changed:
            if not self._seeking:  # it came too late for whoever asked
                assert self.channel is not None
                self.channel.queue_delete(self._queue.name)
                return
            self.held = self._has_led = True
            self._regain_until = None
            self.link.changed.notify_all()
        self.backoff.reset()
        for channel in self._followers:
            channel.open()
