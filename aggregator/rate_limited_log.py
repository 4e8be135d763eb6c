"""What is told of messages of no use: the first few in full, then how many more there were.

Ten thousand bad messages must not hide everything else that a person should see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

#: Of each kind.
FIRST = 3
EVERY_S = 30.0


class Complaints:
    """Says what went wrong, within bounds."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float]) -> None:
        """clock: seconds, from any beginning."""
        self._say = say
        self._clock = clock
        self._told: Counter[str] = Counter()
        self._more: Counter[str] = Counter()
        self._since = 0.0

    def add(self, kind: str, text: str) -> None:
        """One more of a kind, such as a reason for rejection."""
        if self._told[kind] < FIRST:
            self._told[kind] += 1
            self._say(text)
            return
        if not self._more:
            self._since = self._clock()
        self._more[kind] += 1

    def flush(self, force: bool = False) -> None:
        """Say how many more there were, if it is time to, or ``force``."""
        if self._more and (force or self._clock() - self._since >= EVERY_S):
            kinds = ", ".join(f"{kind} {count}" for kind, count in self._more.most_common())
            self._say(f"{self._more.total()} more messages of no use ({kinds})")
            self._more.clear()
