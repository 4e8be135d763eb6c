"""The leader's lock: whom the broker hands the probes of one queue leads.

The queue has a single active consumer: of all who subscribe the broker serves one, and the next
when that one is gone, its node included. An exclusive queue cannot do that: where the broker's
metadata outlive a node (Khepri, RabbitMQ 4.2 and later) it stays locked for a connection that is
dead. An exclusive consumer cannot either: quorum queues grant it to everybody (3.10 to 4.3). But a
consumer is not told whether it is served, so everybody who wants the lead or has it sends probes
through the queue, and whoever receives one, whosever it is, is the one that is served::

    resting    -- seek ----------------------------> seeking: subscribe, send a probe now and again
    seeking    -- a probe arrives -----------------> leading: the followers open
    seeking    -- a probe is confirmed, and has not
                  arrived a while later -----------> refused: somebody else leads; goes on seeking
    seeking    -- rest ----------------------------> resting: unsubscribe, or nobody could lead
    leading    -- a probe of its own is confirmed,
                  and has not arrived in time -----> seeking, subscribed anew: the broker serves
                                                     another, or nobody
    leading    -- the channel or connection ends --> seeking, on the next one
    seeking after having led, refused for longer
    than a dead connection of ours could be served -> usurped: it must stop

Probes go out on the connection that publishes (``Probes``): RabbitMQ stops reading from one that
does while it is short of memory or disk, and the one that consumes has to go on then, with its
acks. A probe that never got out says nothing.

Nothing here makes a second leader harmless: on either side of a partition the broker may serve one
for a while. What counts is the ledger's epoch, under which every commit is checked.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

from pika.channel import Channel
from pika.spec import Basic, BasicProperties

from fluffle.broker.rabbitmq.connection import Backoff, Link
from fluffle.broker.rabbitmq.robust_channel import RobustChannel
from fluffle.broker.topology import Queue

#: From one probe to the next, of who seeks the lead and of who has it, in seconds.
_SEEKS_S, _LEADS_S = 0.3, 2.0
#: A probe that was confirmed comes within this, or to somebody else: of one who seeks, of a leader,
#: beyond what anything takes that the broker sends on that connection.
_ARRIVES_S, _SURELY_ARRIVES_S = 0.7, 5.0


class Probes(RobustChannel):
    """Puts probes into a queue, on a link of its own; ``settled`` is told what became of each."""

    def __init__(self, link: Link, queue: Queue, settled: Callable[[bytes, bool], None]) -> None:
        """settled: (probe, whether it is in the queue); in this link's thread."""
        super().__init__(link)
        self._queue = queue
        self._settled = settled
        self._sent = 0
        #: On their way: number on the channel -> what is in it.
        self._unconfirmed: dict[int, bytes] = {}

    def send(self, probe: bytes) -> None:
        """From any thread."""
        self.link.call(lambda: self._send(probe))

    def opened(self, channel: Channel) -> None:
        """As ``RobustChannel``."""
        channel.confirm_delivery(self._answered)
        self.backoff.reset()

    def lost(self, error: BaseException) -> None:
        """As ``RobustChannel``."""
        probes, self._unconfirmed, self._sent = [*self._unconfirmed.values()], {}, 0
        for probe in probes:
            self._settled(probe, False)

    def _send(self, probe: bytes) -> None:
        if self.channel is None or not self.channel.is_open:
            self._settled(probe, False)
            return
        self._sent += 1
        self._unconfirmed[self._sent] = probe
        self.channel.basic_publish(self._queue.exchange, self._queue.key, probe, BasicProperties())

    def _answered(self, frame: Any) -> None:
        """The broker has put probes into the queue, or would not."""
        method = frame.method
        last = method.delivery_tag
        numbers = [n for n in self._unconfirmed if (n <= last if method.multiple else n == last)]
        for number in numbers:
            self._settled(self._unconfirmed.pop(number), isinstance(method, Basic.Ack))


class LeaderLock(RobustChannel):
    """Takes the lead, takes it again after a reconnect, and only then lets its followers open.

    The link's ``changed`` guards ``held``, ``refused``, ``usurped`` and what is sought.
    """

    def __init__(self, link: Link, publishing: Link, queue: Queue) -> None:
        """publishing: the link that probes go out on."""
        super().__init__(link)
        self._probes = Probes(publishing, queue, self._settled)
        publishing.attach(self._probes)
        self.backoff = Backoff(first=0.1, most=1.0)
        #: The broker serves us.
        self.held = False
        #: Since this lock is sought, a probe went to somebody else.
        self.refused = False
        #: Somebody else has led for longer than a dead connection of ours could.
        self.usurped = False
        self._queue = queue
        self._seeking = False
        self._has_led = False
        self._regain_until: float | None = None
        self._followers: list[RobustChannel] = []
        self._tag: str | None = None
        self._me = secrets.token_hex(8)
        self._sent = 0
        #: Probes that have not come yet.
        self._unseen: set[bytes] = set()

    def seek(self) -> None:
        """Try to take the lock until ``rest``. The caller holds ``changed``."""
        if not self._seeking:
            self._seeking = True
            self.refused = False
            self.link.call(self._subscribe)

    def rest(self) -> None:
        """Try no more. The caller holds ``changed``."""
        self._seeking = False
        self.link.call(self._unsubscribe)

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
        self._subscribe()

    def lost(self, error: BaseException) -> None:
        """As ``RobustChannel``."""
        self._tag = None
        self._unseen.clear()
        with self.link.changed:
            self.held = False

    def _subscribe(self) -> None:
        channel, queue = self.channel, self._queue
        if not self._seeking or self._tag is not None or channel is None or not channel.is_open:
            return
        assert queue.exchange is not None
        channel.exchange_declare(queue.exchange, "direct", durable=True)
        channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
        channel.queue_bind(queue.name, queue.exchange, queue.key)
        self._tag = channel.basic_consume(
            queue.name,
            self._arrived,
            auto_ack=True,
            callback=lambda _frame: self._probe(channel),
        )

    def _unsubscribe(self) -> None:
        if self._stands():
            assert self.channel is not None
            self.channel.basic_cancel(self._tag)
            self._tag = None

    def _stands(self) -> bool:
        return self._tag is not None and self.channel is not None and bool(self.channel.is_open)

    def _probe(self, channel: Channel) -> None:
        """Send one, and others later, while this subscription stands."""
        if channel is not self.channel or not self._stands():
            return
        assert channel is not None
        self.backoff.reset()
        self._sent += 1
        probe = f"{self._me}:{self._sent}".encode()
        self._unseen.add(probe)
        self._probes.send(probe)
        tag, pause = self._tag, _LEADS_S if self.held else _SEEKS_S
        self.link.later(pause, lambda: self._probe(channel) if self._tag == tag else None)

    def _settled(self, probe: bytes, in_queue: bool) -> None:
        """In the other link's thread."""
        self.link.call(lambda: self._sought(probe, in_queue))

    def _sought(self, probe: bytes, in_queue: bool) -> None:
        """What became of a probe that went out."""
        if not in_queue:
            self._unseen.discard(probe)
        elif probe in self._unseen and self._stands():
            channel = self.channel
            assert channel is not None
            patience = _SURELY_ARRIVES_S if self.held else _ARRIVES_S

            def missed() -> None:
                self._missed_one(channel, probe)

            # Its time begins when an answer has come down the same connection: hundreds of
            # megabytes of updates may be ahead of both, on a link that takes minutes for them.
            channel.basic_qos(
                prefetch_count=0, callback=lambda _: self.link.later(patience, missed)
            )

    def _missed_one(self, channel: Channel | None, probe: bytes) -> None:
        """Of a probe that had its time: where it has not come, another is served."""
        if channel is not self.channel or self._tag is None or probe not in self._unseen:
            return
        self._unseen.discard(probe)
        if self.held:
            self.link.warn("the broker has let go of this leader, which takes the lead again")
            self.restart()
        else:
            self._other_leads()

    def _other_leads(self) -> None:
        """Somebody is served, perhaps an old connection of ours.

        The broker ends such a connection when two heartbeats are missing.
        """
        with self.link.changed:
            self.refused = True
            self.link.changed.notify_all()
        if not self._has_led:
            self.link.inform("another aggregator leads, waiting for it to end")
            return
        now = time.monotonic()
        if self._regain_until is None:
            self._regain_until = now + 2.5 * self.link.heartbeat_s + 1.0
            self.link.inform("taking the lead again")
        if now > self._regain_until:
            with self.link.changed:
                self.usurped = True
                self.link.changed.notify_all()
            self.close()

    def _arrived(
        self, channel: Channel, method: Basic.Deliver, _properties: BasicProperties, body: bytes
    ) -> None:
        """The broker serves us: whosever probe it is."""
        self._unseen.discard(body)
        if channel is not self.channel or method.consumer_tag != self._tag:
            return
        with self.link.changed:
            if not self._seeking or self.held:
                return  # it came too late for whoever asked, or is one of many
            self.held = self._has_led = True
            self._regain_until = None
            self.link.changed.notify_all()
        self._unseen.clear()  # those from before went to who led then
        for follower in self._followers:
            follower.open()
