"""RabbitMQ's queues in memory: a work queue with redelivery, and the newest model.

Nothing here locks: the embedded broker's one condition guards all of it.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from fluffle.broker.transport import Delivery, Envelope
from fluffle.schemas.messages import order

Order = tuple[int, int, int, int]
#: Of any part of an order: as in messages.
_HIGHEST = 2**53


class Newest:
    """Keeps the model whose ``order`` is highest; passes over what carries no order."""

    def __init__(self) -> None:
        self.envelope: Envelope | None = None
        self.order: Order | None = None

    def offer(self, envelope: Envelope) -> bool:
        """True where this model is newer than all before it."""
        try:
            offered = order(envelope.headers)
        except (KeyError, TypeError, ValueError):
            return False
        if any(not 0 <= part <= _HIGHEST for part in offered):
            return False
        if self.order is not None and offered <= self.order:
            return False
        self.envelope, self.order = envelope, offered
        return True

    def forget(self, envelope: Envelope) -> None:
        """This was no model, whatever its headers said: any order is new again."""
        if self.envelope is envelope:
            self.envelope = self.order = None

    def above(self, newer_than: Order | None) -> Envelope | None:
        """The newest model where it is newer than that."""
        if self.order is None or (newer_than is not None and self.order <= newer_than):
            return None
        return self.envelope


@dataclass
class _Entry:
    envelope: Envelope
    expires: float = math.inf
    delivery_count: int = 0


@dataclass
class WorkQueue:
    """Messages that are handed out until somebody acks them.

    A message comes back to the front when its holder lets go of it, with ``delivery_count`` one
    higher; above ``delivery_limit`` it goes to ``dead`` instead. A message that has expired is
    dropped when its turn to be handed out comes; one in somebody's hands does not expire.
    """

    clock: Callable[[], float]
    delivery_limit: int
    dead: Callable[[Envelope], None] = lambda envelope: None
    #: Bytes of the messages that nobody holds.
    ready_bytes: int = 0
    _ready: deque[_Entry] = field(default_factory=deque)
    _held: dict[object, dict[object, _Entry]] = field(default_factory=dict)
    _receipts: itertools.count[int] = field(default_factory=itertools.count)

    def put(self, envelope: Envelope, expires_s: float = math.inf) -> None:
        """Append a message that is gone after ``expires_s``."""
        self._ready.append(_Entry(envelope, self.clock() + expires_s))
        self.ready_bytes += envelope.size

    def take(self, holder: object) -> Delivery | None:
        """Hand the next message out; None if there is none."""
        self._drop_expired()
        if not self._ready:
            return None
        entry = self._ready.popleft()
        self.ready_bytes -= entry.envelope.size
        receipt = next(self._receipts)
        self._held.setdefault(holder, {})[receipt] = entry
        return Delivery(entry.envelope, entry.delivery_count, receipt)

    def ack(self, holder: object, delivery: Delivery) -> bool:
        """Forget a message; False where this holder does not hold it."""
        return self._held.get(holder, {}).pop(delivery.receipt, None) is not None

    def give_back(self, holder: object) -> None:
        """Everything that this holder has goes to the front again, in its old order."""
        for entry in reversed(self._held.pop(holder, {}).values()):
            entry.delivery_count += 1
            if entry.delivery_count > self.delivery_limit:
                self.dead(entry.envelope)
            else:
                self._ready.appendleft(entry)
                self.ready_bytes += entry.envelope.size

    def purge(self) -> int:
        """Remove what nobody holds; how many messages that were."""
        self._drop_expired()
        purged = len(self._ready)
        self._ready.clear()
        self.ready_bytes = 0
        return purged

    def ready(self) -> int:
        """How many messages wait."""
        self._drop_expired()
        return len(self._ready)

    def unacked(self, holder: object = None) -> int:
        """How many messages this holder has; everybody's without a holder."""
        if holder is not None:
            return len(self._held.get(holder, ()))
        return sum(len(entries) for entries in self._held.values())

    def _drop_expired(self) -> None:
        now = self.clock()
        while self._ready and self._ready[0].expires <= now:
            self.ready_bytes -= self._ready.popleft().envelope.size
