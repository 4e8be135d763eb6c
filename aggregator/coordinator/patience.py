"""Patience: how long a turn may take before it counts as a dropout.

What ``participation.assignment_deadline_s`` says; else it follows the turns that answered::

    LONGEST_TURN_S until ENOUGH turns have answered, then
    min(LONGEST_TURN_S, max(LEAST_S, FACTOR * the longest of the last WINDOW)),
    each from when it was issued to when its update arrived, waiting for a free slot included

It holds for all open turns alike, so that those that were issued first do not hold up a run that
turns out to be quick. An answer that comes after its turn was given up is measured, too: whoever
only seems lost because he is slow makes it longer. A pure function of what was asked and heard: no
clock of its own, and it starts anew with a start of the aggregator.
"""

from __future__ import annotations

from collections import deque

from fluffle.schemas.experiment import LONGEST_TURN_S

LEAST_S = 10.0
ENOUGH, WINDOW, FACTOR = 5, 100, 3.0
#: Turns that were given up and may still be answered, of which as many are remembered.
_REMEMBERED = 4096


class Patience:
    """Hears when turns are issued and answered."""

    def __init__(self, said: float | None, in_flight: int) -> None:
        """
        said: seconds, where the experiment says how many.
        in_flight: how many turns are open at most.
        """
        self._said = said
        self._most = in_flight + _REMEMBERED
        self._issued: dict[str, float] = {}
        self._took: deque[float] = deque(maxlen=WINDOW)
        #: Seconds after which a turn that has brought nothing is a dropout.
        self.seconds = LONGEST_TURN_S if said is None else said

    def issued(self, assignment_id: str, now: float) -> None:
        """A turn begins; one that is issued again counts from its first time on."""
        if self._said is None:
            self._issued.setdefault(assignment_id, now)
            if len(self._issued) > self._most:
                del self._issued[next(iter(self._issued))]

    def answered(self, assignment_id: str, now: float) -> None:
        """An update of this turn is here, in time or not; the first one counts."""
        began = self._issued.pop(assignment_id, None)
        if began is None:
            return
        self._took.append(now - began)
        if len(self._took) >= ENOUGH:
            self.seconds = min(LONGEST_TURN_S, max(LEAST_S, FACTOR * max(self._took)))
