"""The broker in memory: RabbitMQ's semantics within one process's life, and no server.

A confirm means "until this process exits". Waiting is on one condition, never by polling; timeouts
are real time, while expiry asks the broker's ``clock`` (which a simulation may own).
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from fluffle.broker.errors import Closed, LeadershipLost, MessageTooLarge
from fluffle.broker.memory_queues import Newest, Order, WorkQueue
from fluffle.broker.topology import DELIVERY_LIMIT, EVENTS_MAX_LENGTH, EVENTS_TTL_S
from fluffle.broker.transport import Delivery, Envelope
from fluffle.schemas.codec import MAX_MESSAGE_BYTES
from fluffle.schemas.sizes import MIB, human_bytes


class EmbeddedBroker:
    """Where the threads of one process meet."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_updates_bytes: int = 256 * MIB,
        max_rejected_bytes: int = 64 * MIB,
        max_message_bytes: int = 512 * MIB,
    ) -> None:
        """
        clock: seconds; tells when a turn has expired.
        max_updates_bytes: ``submit`` waits while more than this is queued.
        max_rejected_bytes: of the rejected messages the last ones are kept, up to this.
        max_message_bytes: what RabbitMQ calls ``max_message_size``.
        """
        self.changed = threading.Condition()
        self.models = Newest()
        self.assignments = WorkQueue(clock, DELIVERY_LIMIT)
        self.updates = WorkQueue(clock, DELIVERY_LIMIT, self._delivery_limit)
        self.events: deque[tuple[float, Envelope]] = deque(maxlen=EVENTS_MAX_LENGTH)
        self.requests = WorkQueue(clock, DELIVERY_LIMIT)
        self.masks: deque[Envelope] = deque()
        self.workers: set[EmbeddedWorkerPort] = set()
        self.leader: EmbeddedAggregatorPort | None = None
        self.max_updates_bytes = max_updates_bytes
        self._clock = clock
        self._max_rejected_bytes = max_rejected_bytes
        self._max_message_bytes = max_message_bytes
        self._rejected: deque[Envelope] = deque()
        self._rejected_bytes = 0
        self._rejected_count = 0

    def aggregator(self) -> EmbeddedAggregatorPort:
        """A port for one aggregator."""
        return EmbeddedAggregatorPort(self)

    def worker(self, worker_id: str, slots: int) -> EmbeddedWorkerPort:
        """A port for one worker; ``slots`` = 0 takes no turns."""
        return EmbeddedWorkerPort(self, worker_id, slots)

    def helper(self) -> EmbeddedHelperPort:
        """A port for the helper of secure aggregation."""
        return EmbeddedHelperPort(self)

    def depths(self) -> dict[str, int]:
        """How many messages are where; ``rejected`` counts all that ever were."""
        with self.changed:
            return {
                "updates": self.updates.ready(),
                "unacked": self.updates.unacked(),
                "rejected": self._rejected_count,
                "assignments": self.assignments.ready(),
            }

    def rejected(self) -> list[Envelope]:
        """The rejected messages that are kept, oldest first; their ``reason`` is in the headers."""
        with self.changed:
            return list(self._rejected)

    def bury(self, envelope: Envelope, reason: str) -> None:
        """Into the rejected messages. The caller holds ``changed``."""
        headers = {**envelope.headers, "reason": reason}
        self._rejected.append(dataclasses.replace(envelope, headers=headers))
        self._rejected_count += 1
        self._rejected_bytes += envelope.size
        while self._rejected_bytes > self._max_rejected_bytes:
            self._rejected_bytes -= self._rejected.popleft().size

    def put_event(self, envelope: Envelope) -> None:
        """Into the bounded events. The caller holds ``changed``."""
        self.events.append((self._clock() + EVENTS_TTL_S, envelope))

    def take_event(self) -> Envelope | None:
        """The oldest event that has not expired. The caller holds ``changed``."""
        while self.events:
            expires, envelope = self.events.popleft()
            if expires > self._clock():
                return envelope
        return None

    def check_size(self, envelope: Envelope) -> None:
        """Raises: MessageTooLarge."""
        if envelope.size > self._max_message_bytes:
            raise MessageTooLarge(
                f"a message of {human_bytes(envelope.size)} is more than the "
                f"{human_bytes(self._max_message_bytes)} that the broker takes: use a smaller model"
            )

    def _delivery_limit(self, envelope: Envelope) -> None:
        self.bury(envelope, "delivery_limit")


class EmbeddedAggregatorPort:
    """``AggregatorPort`` in memory."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self._broker = broker
        self._prefetch = 0
        self._closed = False

    def lead(self, timeout_s: float) -> bool:
        """Take the leader's lock, waiting up to ``timeout_s``; True once this port leads."""
        broker = self._broker
        with broker.changed:
            broker.changed.wait_for(
                lambda: self._closed or broker.leader in (None, self), timeout_s
            )
            if self._closed:
                raise Closed
            if broker.leader is None:
                broker.leader = self
            return broker.leader is self

    def latest_model(self, timeout_s: float = 2.0) -> Envelope | None:
        """The newest model that anybody published here; None if there is none."""
        with self._broker.changed:
            self._check_lead()
            return self._broker.models.envelope

    def publish_model(self, envelope: Envelope) -> None:
        """To every mailbox and to the late joiners' store."""
        self._broker.check_size(envelope)
        with self._broker.changed:
            self._check_lead()
            self._broker.models.offer(envelope)
            for worker in self._broker.workers:
                worker.mailbox.offer(envelope)
            self._broker.changed.notify_all()

    def assign(self, envelopes: Sequence[Envelope], expires_s: float) -> None:
        """Put turns into the work queue, each gone after ``expires_s``."""
        for envelope in envelopes:
            self._broker.check_size(envelope)
        with self._broker.changed:
            self._check_lead()
            for envelope in envelopes:
                self._broker.assignments.put(envelope, expires_s)
            self._broker.changed.notify_all()

    def purge_assignments(self) -> int:
        """Remove the turns that no worker holds; how many they were."""
        with self._broker.changed:
            self._check_lead()
            return self._broker.assignments.purge()

    def consume(self, prefetch: int, largest: int = MAX_MESSAGE_BYTES) -> None:
        """Start to receive, or go on with another prefetch; bodies are in memory anyway."""
        with self._broker.changed:
            self._check_lead()
            self._prefetch = prefetch
            self._broker.changed.notify_all()

    def receive(self, timeout_s: float) -> Delivery | None:
        """The next update or event; None after ``timeout_s``. Raises: LeadershipLost, Closed."""
        with self._broker.changed:
            delivery = self._broker.changed.wait_for(self._next, timeout_s)
            if delivery is not None:
                self._broker.changed.notify_all()  # there may be room for a submit that waits
        return delivery

    def ack(self, deliveries: Iterable[Delivery]) -> None:
        """Settle deliveries that are durable; what this port does not hold is skipped."""
        with self._broker.changed:
            for delivery in deliveries:
                self._broker.updates.ack(self, delivery)
            self._broker.changed.notify_all()

    def reject(self, delivery: Delivery, reason: str) -> None:
        """A copy with a ``reason`` header to the rejected messages, then the ack."""
        with self._broker.changed:
            self._check_lead()
            if self._broker.updates.ack(self, delivery):
                self._broker.bury(delivery.envelope, reason)
                self._broker.changed.notify_all()

    def ask_helper(self, envelope: Envelope) -> None:
        """Send this to the helper."""
        self._broker.check_size(envelope)
        with self._broker.changed:
            self._check_lead()
            self._broker.requests.put(envelope)
            self._broker.changed.notify_all()

    def receive_masks(self, timeout_s: float) -> Envelope | None:
        """The next answer of the helper's; None after ``timeout_s``."""

        def arrived() -> bool:
            self._check_lead()
            return bool(self._broker.masks)

        with self._broker.changed:
            self._broker.changed.wait_for(arrived, timeout_s)
            return self._broker.masks.popleft() if self._broker.masks else None

    def close(self) -> None:
        """Give everything unacked and the leader's lock back. May be called twice."""
        with self._broker.changed:
            self._closed = True
            self._broker.updates.give_back(self)
            if self._broker.leader is self:
                self._broker.leader = None
            self._broker.changed.notify_all()

    def _next(self) -> Delivery | None:
        self._check_lead()
        if not self._prefetch:
            return None
        event = self._broker.take_event()
        if event is not None:
            return Delivery(event, 0, None, is_event=True)
        if self._broker.updates.unacked(self) >= self._prefetch:
            return None
        return self._broker.updates.take(self)

    def _check_lead(self) -> None:
        if self._closed:
            raise Closed
        if self._broker.leader is not self:
            raise LeadershipLost("this aggregator does not lead")


class EmbeddedWorkerPort:
    """``WorkerPort`` in memory."""

    user: str | None = None

    def __init__(self, broker: EmbeddedBroker, worker_id: str, slots: int) -> None:
        self.worker_id = worker_id
        self.mailbox = Newest()
        self._broker = broker
        self._slots = slots
        self._closed = False
        with broker.changed:
            if broker.models.envelope is not None:
                self.mailbox.offer(broker.models.envelope)
            broker.workers.add(self)

    def newest_model(self) -> Envelope | None:
        """The newest model seen so far."""
        with self._broker.changed:
            return self.mailbox.envelope

    def wait_model(self, newer_than: Order | None, timeout_s: float) -> Envelope | None:
        """The newest model once its ``order`` is above ``newer_than``; None after ``timeout_s``."""
        with self._broker.changed:
            self._broker.changed.wait_for(
                lambda: self._closed or self.mailbox.above(newer_than) is not None, timeout_s
            )
            self._check_open()
            return self.mailbox.above(newer_than)

    def forget_model(self, envelope: Envelope) -> None:
        """This is no model: its order keeps out no other."""
        with self._broker.changed:
            self.mailbox.forget(envelope)
            self._broker.models.forget(envelope)

    def receive_assignment(self, timeout_s: float) -> Delivery | None:
        """The next turn; at most ``slots`` are unacked at a time. Raises: Closed."""
        with self._broker.changed:
            return self._broker.changed.wait_for(self._next, timeout_s)

    def ack(self, delivery: Delivery) -> None:
        """This turn is done with."""
        with self._broker.changed:
            self._broker.assignments.ack(self, delivery)
            self._broker.changed.notify_all()

    def submit(self, envelope: Envelope) -> None:
        """Into the updates; waits while they are full. Raises: MessageTooLarge, Closed."""
        self._broker.check_size(envelope)
        with self._broker.changed:
            self._broker.changed.wait_for(lambda: self._closed or self._has_room(envelope))
            self._check_open()
            self._broker.updates.put(envelope)
            self._broker.changed.notify_all()

    def emit(self, envelope: Envelope) -> None:
        """Send an event. Returns at once; it may be lost."""
        with self._broker.changed:
            if not self._closed:
                self._broker.put_event(envelope)
                self._broker.changed.notify_all()

    def close(self) -> None:
        """Give unacked turns back. May be called twice."""
        with self._broker.changed:
            self._closed = True
            self._broker.workers.discard(self)
            self._broker.assignments.give_back(self)
            self._broker.changed.notify_all()

    def _next(self) -> Delivery | None:
        self._check_open()
        if self._broker.assignments.unacked(self) >= self._slots:
            return None
        return self._broker.assignments.take(self)

    def _has_room(self, envelope: Envelope) -> bool:
        queued = self._broker.updates.ready_bytes
        return not queued or queued + envelope.size <= self._broker.max_updates_bytes

    def _check_open(self) -> None:
        if self._closed:
            raise Closed


class EmbeddedHelperPort:
    """``HelperPort`` in memory."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self._broker = broker
        self._closed = False

    def receive(self, timeout_s: float) -> Delivery | None:
        """The next request; None after ``timeout_s``. Raises: Closed."""
        with self._broker.changed:
            return self._broker.changed.wait_for(self._next, timeout_s)

    def answer(self, envelope: Envelope) -> None:
        """Send an answer. Raises: MessageTooLarge."""
        self._broker.check_size(envelope)
        with self._broker.changed:
            self._broker.masks.append(envelope)
            self._broker.changed.notify_all()

    def ack(self, delivery: Delivery) -> None:
        """This request is answered."""
        with self._broker.changed:
            self._broker.requests.ack(self, delivery)

    def close(self) -> None:
        """Give everything unacked back. May be called twice."""
        with self._broker.changed:
            self._closed = True
            self._broker.requests.give_back(self)
            self._broker.changed.notify_all()

    def _next(self) -> Delivery | None:
        if self._closed:
            raise Closed
        return self._broker.requests.take(self)
