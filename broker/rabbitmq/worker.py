"""``WorkerPort`` over RabbitMQ, within a worker's few rights."""

from __future__ import annotations

import random

from pika.channel import Channel

from fluffle.broker.memory_queues import Newest, Order
from fluffle.broker.rabbitmq.consumer import Consumer
from fluffle.broker.rabbitmq.port import Port, Settings
from fluffle.broker.rabbitmq.publisher import Publisher
from fluffle.broker.topology import EVENTS, UPDATES, Queue
from fluffle.broker.transport import Delivery, Envelope
from fluffle.schemas.sizes import MIB

#: Whoever deletes the exchange takes the mailbox's binding along, and nobody is told.
_BIND_AGAIN_S = 5.0
#: A turn is a few lines; the one that asks for version 0 carries a plan.
_TURN_BYTES = MIB


class RabbitMQWorkerPort(Port):
    """A worker's two connections.

    It declares nothing but its mailbox: until an aggregator has set the federation up, its
    channels end in 404 and open again.
    """

    def __init__(self, settings: Settings, worker_id: str, slots: int) -> None:
        """Raises: BrokerUnreachable, AccessRefused."""
        super().__init__(settings, f"worker {worker_id}")
        self._worker_id = worker_id
        self._newest = Newest()
        self._mailbox: tuple[object, Queue] | None = None
        self._publisher = Publisher(self._publishing, self._find_exchange, self._user)
        self._late = Consumer(
            self._consuming,
            lambda channel: self._topology.latest_model.name,
            1,
            arguments={"x-stream-offset": "last"},
            on_message=self._newest.offer,
        )
        # The mailbox is bound first: a model is published before that, and is in the stream, or
        # after it, and is in the mailbox.
        self._mail = Consumer(
            self._consuming,
            self._declare_mailbox,
            1,
            on_message=self._got_mail,
            on_ready=self._late.open,
            on_cancelled=self._lose_mailbox,
        )
        self._assignments = Consumer(
            self._consuming,
            lambda channel: self._topology.assignments.name,
            slots,
            largest=_TURN_BYTES,
        )
        self._publishing.attach(self._publisher)
        self._consuming.attach(self._mail)
        if slots:
            self._consuming.attach(self._assignments)
        self._consuming.call(self._bind_again)

    def newest_model(self) -> Envelope | None:
        """The newest model seen so far, from the mailbox or the late joiners' store."""
        with self._changed:
            return self._newest.envelope

    def wait_model(self, newer_than: Order | None, timeout_s: float) -> Envelope | None:
        """The newest model once its ``order`` is above ``newer_than``; None after ``timeout_s``."""

        def newer() -> Envelope | None:
            self._check()
            return self._newest.above(newer_than)

        with self._changed:
            return self._changed.wait_for(newer, timeout_s)

    def forget_model(self, envelope: Envelope) -> None:
        """This is no model: its order keeps out no other."""
        with self._changed:
            self._newest.forget(envelope)

    def receive_assignment(self, timeout_s: float) -> Delivery | None:
        """The next turn; at most ``slots`` are unacked at a time. Raises: Closed."""
        with self._changed:
            return self._changed.wait_for(self._next, timeout_s)

    def ack(self, delivery: Delivery) -> None:
        """This turn is done with."""
        with self._changed:
            self._assignments.ack(delivery)

    def submit(self, envelope: Envelope) -> None:
        """Send what an aggregator must not lose; returns once the broker has confirmed it."""
        self._publisher.publish(self._topology.submit, UPDATES, [envelope], self._check)

    def emit(self, envelope: Envelope) -> None:
        """Send an event. Returns at once; it may be lost."""
        self._publisher.emit(self._topology.submit, EVENTS, envelope)

    def _next(self) -> Delivery | None:
        self._check()
        return self._assignments.take()

    def _got_mail(self, envelope: Envelope) -> None:
        self._newest.offer(envelope)
        self._late.close()

    def _declare_mailbox(self, channel: Channel) -> str:
        """One mailbox for each connection: it outlives a channel."""
        if self._mailbox is None or self._mailbox[0] is not channel.connection:
            self._mailbox = channel.connection, self._topology.mailbox(self._worker_id)
        queue = self._mailbox[1]
        channel.queue_declare(queue.name, exclusive=True, arguments=dict(queue.arguments))
        channel.queue_bind(queue.name, queue.exchange)
        return queue.name

    def _lose_mailbox(self) -> None:
        """It was deleted, or is on a node that is gone, where its name may stay taken."""
        self._mailbox = None

    def _bind_again(self) -> None:
        channel = self._mail.channel
        if channel is not None and channel.is_open and self._mailbox is not None:
            queue = self._mailbox[1]
            channel.queue_bind(queue.name, queue.exchange)
        self._consuming.later(_BIND_AGAIN_S * random.uniform(0.5, 1.0), self._bind_again)

    def _find_exchange(self, channel: Channel) -> None:
        channel.exchange_declare(self._topology.submit, passive=True)
