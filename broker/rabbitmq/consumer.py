"""A consumer of one queue: an inbox that the I/O thread fills and other threads empty."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pika.channel import Channel
from pika.spec import Basic, BasicProperties

from fluffle.broker.rabbitmq import envelopes
from fluffle.broker.rabbitmq.connection import Link
from fluffle.broker.rabbitmq.pika_limits import Assembler, Cut, bound
from fluffle.broker.rabbitmq.robust_channel import Declares, RobustChannel
from fluffle.broker.transport import Delivery, Envelope
from fluffle.schemas.codec import MAX_MESSAGE_BYTES


@dataclass(frozen=True, slots=True)
class _Receipt:
    """A delivery's number means something on its own channel only."""

    channel: Channel
    tag: int


class Consumer(RobustChannel):
    """A subscription that comes back. The link's ``changed`` guards the inbox and what is in hand.

    A lost channel empties the inbox and voids all receipts: the broker delivers it all again.
    """

    def __init__(
        self,
        link: Link,
        queue: Callable[[Channel], str],
        prefetch: int,
        *,
        largest: int = MAX_MESSAGE_BYTES,
        arguments: Mapping[str, Any] | None = None,
        on_message: Callable[[Envelope], object] | None = None,
        on_ready: Callable[[], None] = lambda: None,
        on_cancelled: Callable[[], None] = lambda: None,
        declares: Declares | None = None,
    ) -> None:
        """
        queue: declares what is needed on a new channel and names the queue.
        prefetch: how many messages may be unacked.
        largest: longer bodies, in bytes, are not kept: their hash is in ``too_large``.
        on_message: instead of the inbox; what it has seen is acked. Called with ``changed`` held.
        on_ready: called in the I/O thread when the subscription stands.
        on_cancelled: called in the I/O thread when the broker has ended it.
        declares: as ``RobustChannel``.
        """
        super().__init__(link, declares)
        self._queue = queue
        self._prefetch = prefetch
        self._largest = largest
        self._assembler: Assembler | None = None
        self._arguments = dict(arguments or {})
        self._on_message = on_message
        self._on_ready = on_ready
        self.cancelled = on_cancelled  # type: ignore[method-assign]
        self._name = ""
        self._tag: str | None = None
        self._inbox: deque[Delivery] = deque()
        self._in_hand: set[object] = set()

    def take(self) -> Delivery | None:
        """The next message, unless ``prefetch`` are in hand. The caller holds ``changed``."""
        if not self._inbox or len(self._in_hand) >= self._prefetch:
            return None
        delivery = self._inbox.popleft()
        self._in_hand.add(delivery.receipt)
        return delivery

    def holds(self, delivery: Delivery) -> bool:
        """Whether this receipt is good. The caller holds ``changed``."""
        return delivery.receipt in self._in_hand

    def ack(self, delivery: Delivery) -> None:
        """The broker may forget it; a void receipt is skipped. The caller holds ``changed``.

        A second ack of the same number would end the channel.
        """
        if delivery.receipt in self._in_hand:
            self._in_hand.discard(delivery.receipt)
            self.link.call(partial(_ack, delivery.receipt))
            self.link.changed.notify_all()

    def dead_letter(self, delivery: Delivery) -> None:
        """The broker shall set it aside, which it has in full. The caller holds ``changed``."""
        if delivery.receipt in self._in_hand:
            self._in_hand.discard(delivery.receipt)
            self.link.call(partial(_dead_letter, delivery.receipt))
            self.link.changed.notify_all()

    def set_largest(self, largest: int) -> None:
        """Of messages that begin to arrive from now on."""

        def apply() -> None:
            self._largest = largest
            if self._assembler is not None:
                self._assembler.limit = largest

        self.link.call(apply)

    def set_prefetch(self, prefetch: int) -> None:
        """Subscribe anew with another prefetch. The caller holds ``changed``.

        What is in hand or in the inbox stays. A message that was on its way at that moment is
        handed back by pika and comes again.
        """
        if prefetch != self._prefetch:
            self._prefetch = prefetch
            self.link.call(self._resubscribe)
            self.link.changed.notify_all()

    def opened(self, channel: Channel) -> None:
        """As ``RobustChannel``."""
        self._assembler = bound(channel, self._largest)
        self._name = self._queue(channel)
        self._subscribe(channel)

    def lost(self, error: BaseException) -> None:
        """As ``RobustChannel``."""
        with self.link.changed:
            self._tag = None
            self._inbox.clear()
            self._in_hand.clear()
            self.link.changed.notify_all()

    def _subscribe(self, channel: Channel) -> None:
        channel.basic_qos(prefetch_count=self._prefetch)
        self._tag = channel.basic_consume(
            self._name, self._arrived, arguments=self._arguments, callback=self._subscribed
        )

    def _resubscribe(self) -> None:
        if self.channel is not None and self.channel.is_open and self._tag is not None:
            self.channel.basic_cancel(self._tag)
            self._subscribe(self.channel)

    def _subscribed(self, _frame: object) -> None:
        self.backoff.reset()
        self.stands()
        self._on_ready()

    def _arrived(
        self, channel: Channel, method: Basic.Deliver, properties: BasicProperties, body: bytes
    ) -> None:
        receipt = _Receipt(channel, method.delivery_tag)
        too_large = body.sha256 if isinstance(body, Cut) else ""
        envelope = envelopes.envelope(properties, body, too_large)
        with self.link.changed:
            if self._on_message is not None:
                self._on_message(envelope)
            else:
                # Only the broker's word counts: a sender may write this header as well.
                count = envelopes.delivery_count(properties) if method.redelivered else 0
                self._inbox.append(Delivery(envelope, count, receipt))
            self.link.changed.notify_all()
        if self._on_message is not None:
            _ack(receipt)


def _ack(receipt: object) -> None:
    assert isinstance(receipt, _Receipt)
    if receipt.channel.is_open:
        receipt.channel.basic_ack(receipt.tag)


def _dead_letter(receipt: object) -> None:
    assert isinstance(receipt, _Receipt)
    if receipt.channel.is_open:
        receipt.channel.basic_reject(receipt.tag, requeue=False)
