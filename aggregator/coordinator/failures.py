"""Failures in a row: when a run gives up because every training fails."""

from __future__ import annotations

#: Give up after this many trainings have failed in a row: as many as are in flight, within bounds.
LEAST_FAILURES, MOST_FAILURES = 3, 30


class FailuresInARow:
    """Counts failures of turns that were open since an update was last folded."""

    def __init__(self, concurrency: int) -> None:
        self.count = 0
        self._enough = max(LEAST_FAILURES, min(concurrency, MOST_FAILURES))
        #: The turn of the first of them.
        self._since = 0

    def add(self, turn: int) -> None:
        """One more."""
        self._since = turn if not self.count else self._since
        self.count += 1

    def clear(self) -> None:
        """Something has worked."""
        self.count = 0

    def hopeless(self, oldest_open: float, initialising: bool) -> bool:
        """Enough have failed, and nobody is still at work who began before they did.

        Else one broken worker, which fails quickly, could end the run of many slow ones.
        ``oldest_open`` is the lowest turn that is open.
        """
        if initialising:
            return self.count >= LEAST_FAILURES
        return self.count >= self._enough and oldest_open > self._since
