"""Turns that come back: what this worker has answered, or trains right now, it trains once.

A broker takes an unacked turn back when its training lasts longer than ``consumer_timeout``, or
when the connection was lost meanwhile; the receipt that the slot holds is void then. For one turn,
by its id and its leader's epoch:

    unknown    -- arrives --------------------> under way
    under way  -- arrives again --------------> under way; the new receipt is kept beside the first
    under way  -- its answer is confirmed ----> answered; all receipts are acked
    under way  -- ends with no answer --------> unknown; all receipts are acked, or none where its
                                                slot acks none
    answered   -- arrives again, came back ---> answered; acked at once
    answered   -- arrives anew ---------------> under way: a leader asks again (its answer was
                                                dead-lettered, say), and that is trained

Receipts of a lost connection are void, and acking them does nothing (``fluffle.broker.transport``).
What was answered is known to this process alone: another worker trains a turn that comes to it once
more at most, and the ledger counts one of the answers.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from fluffle.broker import Delivery
from fluffle.schemas import Assignment

#: Turns whose answers are remembered.
_REMEMBERED = 10_000

_Key = tuple[str, int]


class ReturnedTurns:
    """What the slots of one worker share about the turns they had. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[_Key, list[Delivery]] = {}
        self._answered: OrderedDict[_Key, None] = OrderedDict()

    def begin(self, assignment: Assignment, delivery: Delivery) -> list[Delivery] | None:
        """None: it is for this slot, which trains it. Else there is nothing to be trained, and
        these deliveries are to be acked now (none where a slot that is at it will do so).
        """
        key, came_back = _key(assignment), delivery.delivery_count > 0
        with self._lock:
            if key in self._under_way:
                self._under_way[key].append(delivery)
                return []
            if came_back and key in self._answered:
                return [delivery]
            self._under_way[key] = [delivery]
            return None

    def end(self, assignment: Assignment, answered: bool) -> list[Delivery]:
        """What is to be acked with a turn that ``begin`` gave to a slot.

        answered: its answer is confirmed.
        """
        key = _key(assignment)
        with self._lock:
            if answered:
                self._answered[key] = None
                self._answered.move_to_end(key)
                while len(self._answered) > _REMEMBERED:
                    self._answered.popitem(last=False)
            return self._under_way.pop(key, [])


def _key(assignment: Assignment) -> _Key:
    return assignment.assignment_id, assignment.run.epoch
