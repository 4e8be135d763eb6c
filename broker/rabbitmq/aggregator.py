"""``AggregatorPort`` over RabbitMQ."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Sequence

from pika.channel import Channel

from fluffle.broker.errors import LeadershipLost
from fluffle.broker.memory_queues import Newest
from fluffle.broker.rabbitmq.caretaker import Caretaker, Declarations
from fluffle.broker.rabbitmq.consumer import Consumer
from fluffle.broker.rabbitmq.leadership import LeaderLock
from fluffle.broker.rabbitmq.port import Port, Settings
from fluffle.broker.rabbitmq.publisher import Publisher
from fluffle.broker.topology import ASSIGNMENTS, REJECTED, REJECTED_TTL_S, STORE, UNMASK
from fluffle.broker.transport import Delivery, Envelope
from fluffle.schemas.codec import MAX_MESSAGE_BYTES

#: The last chunk of a stream may hold several models; they follow each other faster than this.
_CHUNK_GAP_S = 0.25
#: An answer that a lost channel took along is asked for again after this.
_ASK_AGAIN_S = 5.0
#: The broker says who leads within this, however slow the way to it.
_ANSWER_S = 15.0
#: Events are acked as soon as they are received.
_EVENTS_PREFETCH = 100
_EVENT_BYTES = 64 * 1024


class RabbitMQAggregatorPort(Port):
    """An aggregator's two connections."""

    def __init__(self, settings: Settings) -> None:
        """Raises: BrokerUnreachable, AccessRefused."""
        super().__init__(settings, "aggregator")
        self._lock = LeaderLock(self._consuming, self._publishing, self._topology.aggregator)
        self._declarations = Declarations(self._topology)
        self._publisher = Publisher(
            self._publishing, self._declarations.declare, self._user, self._declarations
        )
        self._led = False
        self._updates: Consumer | None = None
        self._events: Consumer | None = None
        #: To the helper of secure aggregation and back, once there was something to ask.
        self._asking: Publisher | None = None
        self._masks: Consumer | None = None
        self._consuming.attach(self._lock)

    def lead(self, timeout_s: float) -> bool:
        """Take the leader's lock, waiting up to ``timeout_s``; True once this port leads.

        Raises: TopologyMismatch, AccessRefused, LeadershipLost, Closed.
        """

        def held() -> bool:
            self._check()
            return self._lock.held

        def answered() -> bool:
            return held() or self._lock.refused

        def declared() -> bool:
            self._check()
            return self._publisher.ready

        with self._changed:
            self._lock.seek()
            self._changed.wait_for(held, timeout_s)
            # No answer yet is not a no: nobody may lead.
            self._changed.wait_for(answered, _ANSWER_S)
            if not held():
                if not self._led:
                    self._lock.rest()
                return False
            if not self._led:
                self._led = True
                self._publishing.attach(self._publisher)
                self._publishing.attach(Caretaker(self._publishing, self._declarations))
            self._changed.wait_for(declared)
        return True

    def latest_model(self, timeout_s: float = 2.0) -> Envelope | None:
        """The newest model that anybody published here; None if there is none."""
        newest, stands = Newest(), threading.Event()

        def subscribed() -> None:
            with self._changed:
                stands.set()
                self._changed.notify_all()

        reader = self._consumer(
            *(self._topology.latest_model.name, 1, {"x-stream-offset": "last"}, newest),
            on_ready=subscribed,
        )

        def ready() -> bool:
            self._check_lead()
            return stands.is_set()

        def arrived() -> bool:
            self._check_lead()
            return newest.order != seen

        with self._changed:
            seen = None
            self._lock.follow(reader)
            try:
                self._changed.wait_for(ready, _ANSWER_S)
                self._changed.wait_for(arrived, timeout_s)
                while newest.order != seen:
                    seen = newest.order
                    self._changed.wait_for(arrived, _CHUNK_GAP_S)
            finally:
                self._lock.unfollow(reader)
        return newest.envelope

    def publish_model(self, envelope: Envelope) -> None:
        """To every mailbox and to the late joiners' store; returns once the store has confirmed it.

        A mailbox may be left over from a node that is gone, and what was sent to it is never
        confirmed: whose it was has another by now, and has read the store.
        """
        self._publisher.publish(
            *(self._topology.global_model, "", [envelope], self._check_lead),
            instead=(self._topology.assign, STORE),
        )

    def assign(self, envelopes: Sequence[Envelope], expires_s: float) -> None:
        """Put turns into the work queue, each gone after ``expires_s``.

        Returns at once: a wait for each turn's confirm took two thirds of a busy leader's time, and
        is for nothing. A leader that dies issues all its turns anew.
        """
        with self._changed:
            self._check_lead()
        self._publisher.post(self._topology.assign, ASSIGNMENTS, envelopes, expires_s)

    def purge_assignments(self) -> int:
        """Remove the turns that no worker holds; how many they were."""
        purged: list[int] = []

        def ask() -> None:
            channel = self._publisher.channel
            if self._publisher.ready and channel is not None and channel.is_open:
                channel.queue_purge(self._topology.assignments.name, callback=answer)

        def answer(frame: object) -> None:
            with self._changed:
                purged.append(frame.method.message_count)  # type: ignore[attr-defined]
                self._changed.notify_all()

        def answered() -> bool:
            self._check_lead()
            return bool(purged)

        with self._changed:
            while not purged:
                self._publishing.call(ask)
                self._changed.wait_for(answered, _ASK_AGAIN_S)
        return purged[0]

    def consume(self, prefetch: int, largest: int = MAX_MESSAGE_BYTES) -> None:
        """Start to receive updates and events, or go on with another prefetch."""
        with self._changed:
            self._check_lead()
            if self._updates is not None:
                self._updates.set_largest(largest)
                self._updates.set_prefetch(prefetch)
                return
            updates, events = self._topology.updates, self._topology.events
            self._updates = self._consumer(updates.name, prefetch, largest=largest)
            self._events = self._consumer(events.name, _EVENTS_PREFETCH, largest=_EVENT_BYTES)
        self._lock.follow(self._updates)
        self._lock.follow(self._events)

    def receive(self, timeout_s: float) -> Delivery | None:
        """The next update or event; None after ``timeout_s``. Raises: LeadershipLost, Closed."""
        with self._changed:
            return self._changed.wait_for(self._next, timeout_s)

    def ack(self, deliveries: Iterable[Delivery]) -> None:
        """Settle deliveries that are durable. Receipts from before a reconnect are skipped."""
        with self._changed:
            if self._updates is not None:
                for delivery in deliveries:
                    self._updates.ack(delivery)

    def reject(self, delivery: Delivery, reason: str) -> None:
        """A confirmed copy with a ``reason`` header to the rejected messages, then the ack.

        The copy is there for ``REJECTED_TTL_S``.

        The copy is ours, so the broker vouches for us: who sent it is in the header ``user``.
        """
        updates = self._updates
        with self._changed:
            self._check_lead()
            if updates is None or not updates.holds(delivery):
                return  # it comes again
            if delivery.envelope.too_large:
                updates.dead_letter(delivery)
                return
        envelope = delivery.envelope
        headers = {**envelope.headers, "reason": reason}
        if envelope.user_id is not None:
            headers["user"] = envelope.user_id
        copy = dataclasses.replace(envelope, headers=headers)
        self._publisher.publish(
            self._topology.dead_letter, REJECTED, [copy], self._check_lead, REJECTED_TTL_S
        )
        with self._changed:
            updates.ack(delivery)

    def ask_helper(self, envelope: Envelope) -> None:
        """Send this to the helper; returns once confirmed. The first one declares its queues."""
        with self._changed:
            self._check_lead()
            if self._asking is None:
                self._asking = Publisher(self._publishing, self._make_helpers, self._user)
                self._publishing.attach(self._asking)
            if self._masks is None:
                self._masks = Consumer(self._consuming, self._prepare_masks, 1)
                self._lock.follow(self._masks)
        self._asking.publish(self._topology.helper, UNMASK, [envelope], self._check_lead)

    def receive_masks(self, timeout_s: float) -> Envelope | None:
        """The next answer of the helper's; None after ``timeout_s``.

        It is acked at once: one that is lost with us is asked for again.
        """

        def arrived() -> Delivery | None:
            self._check_lead()
            return self._masks.take() if self._masks is not None else None

        with self._changed:
            delivery = self._changed.wait_for(arrived, timeout_s)
            if delivery is None or self._masks is None:
                return None
            self._masks.ack(delivery)
        return delivery.envelope

    def _make_helpers(self, channel: Channel) -> None:
        names = self._topology
        channel.exchange_declare(names.helper, "direct", durable=True)
        for queue in (names.unmask, names.masks):
            channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
            channel.queue_bind(queue.name, names.helper, queue.key)

    def _prepare_masks(self, channel: Channel) -> str:
        self._make_helpers(channel)
        return self._topology.masks.name

    def _next(self) -> Delivery | None:
        self._check_lead()
        if self._events is None or self._updates is None:
            return None
        event = self._events.take()
        if event is not None:
            self._events.ack(event)
            return dataclasses.replace(event, is_event=True)
        return self._updates.take()

    def _consumer(
        self,
        queue: str,
        prefetch: int,
        arguments: dict[str, str] | None = None,
        newest: Newest | None = None,
        largest: int = MAX_MESSAGE_BYTES,
        on_ready: Callable[[], None] = lambda: None,
    ) -> Consumer:
        def prepare(channel: Channel) -> str:
            self._declarations.declare(channel)
            return queue

        return Consumer(
            self._consuming,
            prepare,
            prefetch,
            largest=largest,
            arguments=arguments,
            on_message=newest.offer if newest is not None else None,
            on_ready=on_ready,
            declares=self._declarations,
        )

    def _check(self) -> None:
        super()._check()
        if self._lock.usurped:
            raise LeadershipLost("another aggregator leads")

    def _check_lead(self) -> None:
        self._check()
        if not self._led:
            raise LeadershipLost("this aggregator does not lead")
