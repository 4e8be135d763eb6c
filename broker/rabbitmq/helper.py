"""``HelperPort`` over RabbitMQ: reads requests, writes answers, and needs no more."""

from __future__ import annotations

from pika.channel import Channel

from fluffle.broker.rabbitmq.consumer import Consumer
from fluffle.broker.rabbitmq.port import Port, Settings
from fluffle.broker.rabbitmq.publisher import Publisher
from fluffle.broker.topology import MASKS
from fluffle.broker.transport import Delivery, Envelope


class RabbitMQHelperPort(Port):
    """A helper's two connections.

    It declares nothing: until an aggregator has asked for something, its channels end in 404 and
    open again.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises: BrokerUnreachable, AccessRefused."""
        super().__init__(settings, "helper")
        self._publisher = Publisher(self._publishing, self._find_exchange, self._user)
        self._requests = Consumer(self._consuming, lambda _: self._topology.unmask.name, 1)
        self._publishing.attach(self._publisher)
        self._consuming.attach(self._requests)

    def receive(self, timeout_s: float) -> Delivery | None:
        """The next request; None after ``timeout_s``. Raises: Closed."""
        with self._changed:
            return self._changed.wait_for(self._next, timeout_s)

    def answer(self, envelope: Envelope) -> None:
        """Send an answer; returns once confirmed. Raises: MessageTooLarge, Closed."""
        self._publisher.publish(self._topology.helper, MASKS, [envelope], self._check)

    def ack(self, delivery: Delivery) -> None:
        """This request is answered."""
        with self._changed:
            self._requests.ack(delivery)

    def _next(self) -> Delivery | None:
        self._check()
        return self._requests.take()

    def _find_exchange(self, channel: Channel) -> None:
        channel.exchange_declare(self._topology.helper, passive=True)
