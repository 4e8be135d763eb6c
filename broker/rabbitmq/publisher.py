"""A publisher that publishes until the broker has confirmed, whatever happens in between.

Many messages are under way at once. What was not confirmed when a channel or a connection ended is
published again, so a message may arrive twice and is never lost.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pika.channel import Channel
from pika.exceptions import AMQPError
from pika.spec import Basic, BasicProperties

from fluffle.broker.errors import MessageTooLarge
from fluffle.broker.rabbitmq.connection import Backoff, Link
from fluffle.broker.rabbitmq.envelopes import properties
from fluffle.broker.rabbitmq.robust_channel import Declares, RobustChannel
from fluffle.broker.transport import Envelope
from fluffle.schemas.codec import MAX_MESSAGE_BYTES
from fluffle.schemas.sizes import human_bytes


@dataclass(eq=False, slots=True)
class _Outgoing:
    exchange: str
    key: str
    body: bytes
    properties: BasicProperties
    #: The broker found no queue for it, and confirmed it all the same.
    returned: bool = False
    #: Confirmed, refused for good, or given up by its caller.
    settled: bool = False
    error: Exception | None = None
    #: Exchange and key for it where the broker could not put it into all queues.
    instead: tuple[str, str] | None = None


class Publisher(RobustChannel):
    """A channel in confirm mode. The link's ``changed`` guards what is waiting and under way."""

    def __init__(
        self,
        link: Link,
        prepare: Callable[[Channel], None],
        user: str | None,
        declares: Declares | None = None,
    ) -> None:
        """
        prepare: declares what messages need to find their way, on every new channel.
        user: whose messages these are.
        declares: as ``RobustChannel``.
        """
        super().__init__(link, declares)
        self.ready = False
        self._prepare = prepare
        self._user = user
        self._numbers = itertools.count()
        self._waiting: dict[str, _Outgoing] = {}
        self._under_way: dict[int, tuple[str, _Outgoing]] = {}
        self._next_tag = 1
        self._refusals = Backoff(first=0.1, most=5.0)
        #: What a full queue has refused and not taken since.
        self._refused_ones: set[_Outgoing] = set()
        #: The last messages found no queue.
        self._astray = False

    def publish(
        self,
        exchange: str,
        key: str,
        envelopes: Sequence[Envelope],
        check: Callable[[], None],
        expires_s: float | None = None,
        instead: tuple[str, str] | None = None,
    ) -> None:
        """Returns once all are confirmed. Called by any thread but the I/O thread.

        expires_s: gone from a queue after this long.
        instead: exchange and key of the queue that has to have it, where others may miss it.
        check: raises what the caller shall not wait beyond.
        Raises: MessageTooLarge, and what ``check`` raises.
        """
        batch = self._batch(exchange, key, envelopes, expires_s)
        for outgoing in batch.values():
            outgoing.instead = instead
        pending = list(reversed(batch.values()))

        def settled() -> bool:
            check()
            while pending and pending[-1].settled:
                pending.pop()
            return not pending

        with self.link.changed:
            check()
            self._waiting.update(batch)
            self.link.call(self._pump)
            try:
                self.link.changed.wait_for(settled)
            finally:
                for number, outgoing in batch.items():
                    self._waiting.pop(number, None)
                    outgoing.settled = True
        for outgoing in batch.values():
            if outgoing.error is not None:
                raise outgoing.error

    def post(
        self, exchange: str, key: str, envelopes: Sequence[Envelope], expires_s: float
    ) -> None:
        """Returns at once. What is not confirmed is published again while this publisher lives.

        Called by any thread. Raises: MessageTooLarge.
        """
        batch = self._batch(exchange, key, envelopes, expires_s)
        with self.link.changed:
            self._waiting.update(batch)
        self.link.call(self._pump)

    def emit(self, exchange: str, key: str, envelope: Envelope) -> None:
        """Publish once if there is a channel, and forget. Called by any thread."""
        sent_as = properties(envelope, user=self._user)

        def send() -> None:
            if self.ready and self.channel is not None and self.channel.is_open:
                self.channel.basic_publish(exchange, key, envelope.body, sent_as)
                self._next_tag += 1

        self.link.call(send)

    def opened(self, channel: Channel) -> None:
        """As ``RobustChannel``."""
        self._prepare(channel)
        channel.add_on_return_callback(self._returned)
        channel.confirm_delivery(self._answered, callback=self._confirming)

    def lost(self, error: BaseException) -> None:
        """As ``RobustChannel``: what is not confirmed waits again, in its old order."""
        with self.link.changed:
            self.ready = False
            again = {number: out for number, out in self._under_way.values() if not out.settled}
            self._waiting = {**again, **self._waiting}
            self._under_way.clear()
            limit = _size_limit(error)
            if limit is not None:
                self._refuse_above(limit)

    def broken(self, error: BaseException) -> bool:
        """As ``RobustChannel``."""
        return _size_limit(error) is not None

    def _batch(
        self,
        exchange: str,
        key: str,
        envelopes: Sequence[Envelope],
        expires_s: float | None = None,
    ) -> dict[str, _Outgoing]:
        batch: dict[str, _Outgoing] = {}
        for envelope in envelopes:
            if envelope.size > MAX_MESSAGE_BYTES:
                raise _too_large(envelope.size, MAX_MESSAGE_BYTES)
            number = str(next(self._numbers))
            sent_as = properties(
                envelope, user=self._user, correlation_id=number, expires_s=expires_s
            )
            batch[number] = _Outgoing(exchange, key, envelope.body, sent_as)
        return batch

    def _confirming(self, _frame: object) -> None:
        self._next_tag = 1
        with self.link.changed:
            self.ready = True
            self.link.changed.notify_all()
        if not self._astray:
            self.stands()
        self._pump()

    def _pump(self) -> None:
        """Send what waits; the broker's answers come by number, in its own time."""
        if not self.ready or self.channel is None or not self.channel.is_open:
            return
        with self.link.changed:
            waiting, self._waiting = self._waiting, {}
            self._under_way.update(enumerate(waiting.items(), self._next_tag))
            self._next_tag += len(waiting)
        for out in waiting.values():
            self.channel.basic_publish(
                out.exchange, out.key, out.body, out.properties, mandatory=True
            )

    def _returned(
        self, _channel: Channel, _method: object, properties: BasicProperties, _body: bytes
    ) -> None:
        """Comes before the confirm of the same message."""
        for number, out in self._under_way.values():
            if number == properties.correlation_id:
                out.returned = True

    def _answered(self, frame: Any) -> None:
        method = frame.method
        with self.link.changed:
            entries = [self._under_way.pop(tag) for tag in self._tags(method)]
            again = {number: out for number, out in entries if not out.settled}
            if isinstance(method, Basic.Ack):
                self._refusals.reset()
                for number in [number for number, out in again.items() if not out.returned]:
                    again.pop(number).settled = True
                    self.backoff.reset()
                self.link.changed.notify_all()
                self._took()
                if not again:
                    self._astray = False
                    self.stands()
        if again and isinstance(method, Basic.Ack):
            self._unroutable(again)
        elif again:
            self._refused(again)

    def _tags(self, method: Any) -> list[int]:
        if not method.multiple:
            return [method.delivery_tag] if method.delivery_tag in self._under_way else []
        return [tag for tag in self._under_way if tag <= method.delivery_tag]

    def _unroutable(self, again: dict[str, _Outgoing]) -> None:
        """A queue is missing: another channel prepares the way, and all is published again."""
        self._astray = True
        for out in again.values():
            self.miss(f"no queue is bound to {out.exchange}, trying again until one is")
            out.returned = False
        with self.link.changed:
            self._waiting = {**again, **self._waiting}
        self.restart()

    def _refused(self, again: dict[str, _Outgoing]) -> None:
        """A queue is full, or is on a node that is gone.

        Whoever sends waits, which is said once, and once more when it is over; what only one queue
        must have goes there alone.
        """
        rerouted = {number: out for number, out in again.items() if out.instead is not None}
        if rerouted:
            self._reroute(rerouted)
            again = {number: out for number, out in again.items() if number not in rerouted}
            if not again:
                return
        if not self._refused_ones:
            self.link.warn("the queue is full, waiting until it takes messages again")
        self._refused_ones |= set(again.values())

        def retry() -> None:
            with self.link.changed:
                self._waiting.update((n, out) for n, out in again.items() if not out.settled)
            self._pump()

        self.link.later(self._refusals.next(), retry)

    def _reroute(self, outgoing: dict[str, _Outgoing]) -> None:
        for out in outgoing.values():
            assert out.instead is not None
            (out.exchange, out.key), out.instead = out.instead, None
        with self.link.changed:
            self._waiting = {**outgoing, **self._waiting}
        self._pump()

    def _took(self) -> None:
        if self._refused_ones:
            self._refused_ones = {out for out in self._refused_ones if not out.settled}
            if not self._refused_ones:
                self.link.inform("the queue takes messages again")

    def _refuse_above(self, limit: int) -> None:
        for number, out in list(self._waiting.items()):
            if len(out.body) > limit:
                del self._waiting[number]
                out.error = _too_large(len(out.body), limit)
                out.settled = True
        self.link.changed.notify_all()


def _size_limit(error: BaseException) -> int | None:
    """RabbitMQ's limit, where this is its complaint about the size of a message."""
    text = getattr(error, "reply_text", "") if isinstance(error, AMQPError) else ""
    found = re.search(r"message size \d+\D+(\d+)", text)
    return int(found[1]) if found else None


def _too_large(size: int, limit: int) -> MessageTooLarge:
    return MessageTooLarge(
        f"a message of {human_bytes(size)} is more than the {human_bytes(limit)} that this "
        "RabbitMQ takes: raise max_message_size in its rabbitmq.conf (512 MiB at most), or use a "
        "smaller model"
    )
