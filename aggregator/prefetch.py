"""Prefetch: how many updates may be in our hands, and how long one may be."""

from __future__ import annotations

from fluffle.broker import AggregatorPort, Delivery, Envelope
from fluffle.schemas.codec import MAX_MESSAGE_BYTES
from fluffle.schemas.sizes import MIB

#: Updates that may be in our hands at once, by number and by bytes.
MAX_PREFETCH = 64
MAX_PREFETCH_BYTES = 256 * MIB
#: No update is longer than this many models (SCAFFOLD sends two), and a head and a table.
MOST_MODELS, HEAD_BYTES = 4, 4 * MIB
#: A message that came back this often may be what kills us: take what follows one by one.
SUSPICIOUS = 3


class Prefetch:
    """What is asked of the port. One at a time until we know how long an update is."""

    def __init__(self, port: AggregatorPort) -> None:
        self._port = port
        self._asked = 0
        self._normal = 1
        #: Of a message, in bytes; until there is a model anything may come.
        self.largest = MAX_MESSAGE_BYTES

    def fit(self, model: Envelope) -> None:
        """As long updates as go with this model, and from the next delivery on as many."""
        self.largest = MOST_MODELS * model.size + HEAD_BYTES
        # The broker pushes whatever is accepted: the longest counts, not the usual.
        self._normal = max(2, min(MAX_PREFETCH, MAX_PREFETCH_BYTES // self.largest))
        if self._asked:
            self._port.consume(self._asked, self.largest)

    def begin(self) -> int:
        """Start to receive; how many updates may be held unrecorded."""
        return self._ask(1)

    def after(self, delivery: Delivery) -> int:
        """Go on after this one has come; how many updates may be held unrecorded."""
        return self._ask(1 if delivery.delivery_count >= SUSPICIOUS else self._normal)

    def _ask(self, prefetch: int) -> int:
        """With one at a time each is recorded before the next comes."""
        if prefetch != self._asked:
            self._asked = prefetch
            self._port.consume(prefetch, self.largest)
        return max(1, prefetch // 2)
