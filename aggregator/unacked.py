"""The updates in our hands: folded, not recorded yet, and so not acked."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from fluffle.broker import Delivery


@dataclass
class _Held:
    """Its size, and its deliveries without their bodies: one, or more after a reconnect."""

    size: int
    deliveries: list[Delivery] = field(default_factory=list)


class Unacked:
    """Keeps deliveries until a record of their updates is durable."""

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}

    def __contains__(self, update_id: str) -> bool:
        return update_id in self._held

    def take(self, update_id: str, delivery: Delivery) -> None:
        """Hold this delivery of an update."""
        held = self._held.setdefault(update_id, _Held(delivery.envelope.size))
        # Once folded the body has done its work; memory must not grow with the buffer.
        bare = dataclasses.replace(delivery.envelope, content=b"")
        held.deliveries.append(dataclasses.replace(delivery, envelope=bare))

    def sizes(self) -> dict[str, int]:
        """Bytes of each update's message."""
        return {update_id: held.size for update_id, held in self._held.items()}

    def release(self) -> list[Delivery]:
        """All of them, to be acked; the hands are empty now."""
        deliveries = [d for held in self._held.values() for d in held.deliveries]
        self._held.clear()
        return deliveries
