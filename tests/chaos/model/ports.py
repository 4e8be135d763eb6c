"""Ports of the embedded broker behind a connection that fails.

Around every call is a point where the process may end, be stopped, or lose its connection. What a
port over RabbitMQ does about a lost connection is done here: it takes the lead again where nobody
else has it, and publishes again what was not confirmed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from fluffle.broker import Delivery, Envelope
from fluffle.broker.embedded import EmbeddedAggregatorPort, EmbeddedWorkerPort
from fluffle.schemas.codec import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from tests.chaos.model.world import World

Order = tuple[int, int, int, int]


class FaultyAggregatorPort:
    """``AggregatorPort``."""

    def __init__(self, world: World) -> None:
        self.inner: EmbeddedAggregatorPort = world.broker.aggregator()
        self._world = world
        self._has_led = False

    def lead(self, timeout_s: float) -> bool:
        until = self._world.scheduler.now + timeout_s
        self._reach("lead")
        while True:
            if self.inner.lead(0.0):
                self._has_led = True
                self._done("led")
                return True
            if self._world.scheduler.now >= until:
                return False
            self._world.scheduler.wait(until)
            self._find_broker()

    def latest_model(self, timeout_s: float = 2.0) -> Envelope | None:
        self._reach("latest_model")
        return self.inner.latest_model()

    def publish_model(self, envelope: Envelope) -> None:
        self._reach("publish_model")
        envelope = self._world.wire(envelope)
        self._world.watch.published(envelope)
        with self._world.publishing():
            self._confirmed(lambda: self.inner.publish_model(envelope))
        self._done("published_model")

    def assign(self, envelopes: Sequence[Envelope], expires_s: float) -> None:
        self._reach("assign")
        envelopes = [self._world.wire(envelope) for envelope in envelopes]
        self._confirmed(lambda: self.inner.assign(envelopes, expires_s))
        self._done("assigned")

    def purge_assignments(self) -> int:
        self._reach("purge_assignments")
        return self.inner.purge_assignments()

    def consume(self, prefetch: int, largest: int = MAX_MESSAGE_BYTES) -> None:
        self._reach("consume")
        self.inner.consume(prefetch, largest)

    def receive(self, timeout_s: float) -> Delivery | None:
        until = self._world.scheduler.now + timeout_s
        self._reach("receive")
        while True:
            delivery = self.inner.receive(0.0)
            if delivery is not None:
                self._done(f"received {delivery.envelope.message_id} ({delivery.delivery_count})")
            if delivery is not None or self._world.scheduler.now >= until:
                return delivery
            self._world.scheduler.wait(until)
            self._find_broker()

    def ack(self, deliveries: Iterable[Delivery]) -> None:
        deliveries = list(deliveries)
        self._reach("ack")
        for delivery in deliveries:
            self._world.watch.acked(delivery)
        if self._world.strikes("ack"):
            self._world.disconnect(self.inner)
        else:
            self.inner.ack(deliveries)
        self._done(f"acked {[d.envelope.message_id for d in deliveries]}")

    def reject(self, delivery: Delivery, reason: str) -> None:
        self._reach(f"reject {reason}")
        broker = self._world.broker
        if delivery.receipt not in broker.updates._held.get(self.inner, ()):
            return  # it comes again

        def copy() -> None:
            self.inner._check_lead()
            with broker.changed:
                broker.bury(delivery.envelope, reason)

        self._confirmed(copy)
        self._done("copied")
        self._world.watch.acked(delivery)
        self.inner.ack([delivery])
        self._done("rejected")

    def close(self) -> None:
        self.inner.close()
        self._world.scheduler.stir()

    def _reach(self, what: str) -> None:
        """Before an effect."""
        self._world.point(what)
        self._find_broker()

    def _find_broker(self) -> None:
        """The broker is there, and the lead ours again if it is nobody's."""
        self._world.wait_for_broker()
        if self._has_led and self._world.broker.leader is None:
            self._world.broker.leader = self.inner

    def _confirmed(self, publish: Callable[[], None]) -> None:
        publish()
        if self._world.strikes("confirm"):
            publish()

    def _done(self, what: str) -> None:
        self._world.scheduler.stir()
        self._world.point(what)


class FaultyWorkerPort:
    """``WorkerPort``."""

    user: str | None = None

    def __init__(self, world: World, worker_id: str, slots: int) -> None:
        self.inner: EmbeddedWorkerPort = world.broker.worker(worker_id, slots)
        self._world = world
        #: What it has answered and seen confirmed.
        self._answered: set[str] = set()

    def newest_model(self) -> Envelope | None:
        self._world.point("newest_model")
        return self.inner.newest_model()

    def forget_model(self, envelope: Envelope) -> None:
        self.inner.forget_model(envelope)

    def wait_model(self, newer_than: Order | None, timeout_s: float) -> Envelope | None:
        until = self._world.scheduler.now + timeout_s
        self._world.point("wait_model")
        while True:
            envelope = self.inner.wait_model(newer_than, 0.0)
            if envelope is not None or self._world.scheduler.now >= until:
                return envelope
            self._world.scheduler.wait(until)

    def receive_assignment(self, timeout_s: float) -> Delivery | None:
        until = self._world.scheduler.now + timeout_s
        self._reach("receive_assignment")
        while True:
            delivery = self.inner.receive_assignment(0.0)
            if delivery is not None:
                self._world.point(f"took {delivery.envelope.message_id}")
            if delivery is not None or self._world.scheduler.now >= until:
                return delivery
            self._world.scheduler.wait(until)
            self._find_broker()

    def ack(self, delivery: Delivery) -> None:
        self._reach("ack")
        self._world.watch.turn_acked(delivery, self._answered, self.inner.newest_model())
        self.inner.ack(delivery)
        self._world.scheduler.stir()
        self._world.point(f"acked {delivery.envelope.message_id}")

    def submit(self, envelope: Envelope) -> None:
        self._reach("submit")
        envelope = self._world.wire(envelope)
        self.inner.submit(envelope)
        self._world.sent(envelope)
        self._world.point(f"submitted {envelope.message_id}, not confirmed")
        if self._world.strikes("confirm"):
            self._reach("submit again")
            self.inner.submit(envelope)
            self._world.sent(envelope)
        self._answered.add(envelope.message_id)
        self._world.point("confirmed")

    def emit(self, envelope: Envelope) -> None:
        self._world.point("emit")
        self.inner.emit(envelope)

    def close(self) -> None:
        self.inner.close()
        self._world.scheduler.stir()

    def _reach(self, what: str) -> None:
        self._world.point(what)
        self._find_broker()

    def _find_broker(self) -> None:
        self._world.wait_for_broker()
