"""Presence: which workers and resident clients are here, as far as their events say.

Events may be lost and anybody who may send can send them, so they are shown to a person and
nothing is decided from them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from fluffle.schemas import Event

_log = logging.getLogger(__name__)

#: Lines within so many seconds; what comes on top is said in one.
LINES, EVERY_S = 10, 30.0
#: Names that are remembered; a federation has fewer, an attacker has not.
MOST = 10_000


class Presence:
    """Hears events, says who joined or left, and knows who is here."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: seconds, from any beginning."""
        self._clock = clock
        self._slots: dict[str, int] = {}
        #: When each client that has a name was last heard of, in seconds since 1970.
        self.last_heard: dict[str, float] = {}
        self._since = clock()
        self._lines = self._more = 0

    @property
    def workers(self) -> int:
        """How many are here."""
        return len(self._slots)

    @property
    def slots(self) -> int:
        """The slots that they have together."""
        return sum(self._slots.values())

    def saw(self, client: str) -> None:
        """Something of this client has come."""
        if client in self.last_heard or len(self.last_heard) < MOST:
            self.last_heard[client] = time.time()

    def hear(self, event: Event) -> None:
        """Somebody joined or left; news once."""
        self.saw(event.worker)
        if event.kind == "left":
            if self._slots.pop(event.worker, None) is not None:
                self._tell(f"worker {event.worker} left")
        elif event.worker in self._slots or len(self._slots) < MOST:
            slots = event.slots or 1
            if self._slots.get(event.worker) != slots:
                self._slots[event.worker] = slots
                self._tell(f"worker {event.worker} joined ({slots} slot{'s' * (slots > 1)})")

    def flush(self, force: bool = False) -> None:
        """Say how many more there were, if it is time to, or ``force``."""
        if force or self._clock() - self._since >= EVERY_S:
            if self._more:
                here = f"{self.workers} are here with {self.slots} slots"
                _log.info(f"workers joined or left {self._more} more times; {here}")
            self._since, self._lines, self._more = self._clock(), 0, 0

    def _tell(self, text: str) -> None:
        self.flush()
        if self._lines < LINES:
            self._lines += 1
            _log.info(text)
        else:
            self._more += 1
