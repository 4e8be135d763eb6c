"""Virtual time: a clock, what is due on it, and the log of what happened."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

_JSON = json.JSONEncoder(separators=(",", ":"))


class Clock:
    """Virtual seconds since the run began."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def jump(self, to: float) -> None:
        """Let it be this time, if it is not later already."""
        self.now = max(self.now, to)


class Events:
    """What is to be done when; at the same time, in the order in which it was scheduled."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._cancelled: set[int] = set()

    @property
    def now(self) -> float:
        """The clock's time."""
        return self._clock.now

    @property
    def next_at(self) -> float:
        """When the next is due; infinity if nothing is."""
        while self._due and self._due[0][1] in self._cancelled:
            self._cancelled.discard(heapq.heappop(self._due)[1])
        return self._due[0][0] if self._due else float("inf")

    def at(self, time: float, act: Callable[[], None]) -> int:
        """Do this at this time, unless it is cancelled by the number that this returns."""
        self._number += 1
        heapq.heappush(self._due, (time, self._number, act))
        return self._number

    def cancel(self, number: int) -> None:
        """Do not do that, which has not been done yet."""
        self._cancelled.add(number)

    def advance(self) -> None:
        """Let the clock jump to what is due next (``next_at``), and do it."""
        at, _, act = heapq.heappop(self._due)
        self._clock.jump(at)
        act()


class EventLog:
    """``events.jsonl``: a line for everything that happened, with its time."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._clock = clock
        self._file = path.open("w", encoding="utf-8")

    def note(self, event: str, /, **fields: Any) -> None:
        """Something happens now. No field takes the place of the time or the event."""
        line = {"at": round(self._clock.now, 6), "event": event}
        line = line | fields | line
        self._file.write(_JSON.encode(line) + "\n")

    def close(self) -> None:
        """No more lines."""
        self._file.close()
