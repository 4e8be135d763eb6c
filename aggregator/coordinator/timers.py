"""Timers: when the coordinator wants to be called, in seconds of its caller's clock.

What is asked for and what is compared are the very same sums: a timer that is due and does nothing
would be due again at once, for ever under a clock that waits for it.
"""

from __future__ import annotations

from fluffle.schemas import Experiment

#: How long a finished run waits for the evaluation of its last version, and how often it publishes
#: that meanwhile, so that an evaluator which has just come back knows that it is waited for.
FINAL_WAIT_S, FINAL_AGAIN_S = 60.0, 5.0

_NEVER = float("inf")


class Timers:
    """Of one start of a run; ``before_s`` is how long its earlier starts took."""

    def __init__(self, experiment: Experiment, before_s: float) -> None:
        self._experiment = experiment
        self._before_s = before_s
        self._started_at = 0.0
        self._held_since: float | None = None
        self._waits_until = _NEVER
        #: When the buffer closes without a quorum; once finishing, when to publish again.
        self.deadline = _NEVER

    def start(self, now: float) -> None:
        """The run begins, or goes on."""
        self._started_at = now

    def elapsed_s(self, now: float) -> float:
        """Seconds that the run has taken so far, earlier starts included."""
        return self._before_s + now - self._started_at

    def restart_deadline(self, now: float) -> None:
        """Wait for updates from now on."""
        self.deadline = now + self._experiment.aggregation.deadline_s

    def hold(self, now: float) -> None:
        """An update is held; the first since ``release`` counts."""
        if self._held_since is None:
            self._held_since = now

    def release(self) -> None:
        """No update is held any more."""
        self._held_since = None

    def wait_for_evaluation(self, now: float) -> None:
        """Wait for the evaluation of the last version from now on."""
        self._waits_until = now + FINAL_WAIT_S
        self.deadline = now + FINAL_AGAIN_S

    def waits_on(self, now: float) -> bool:
        """Whether that wait goes on; its next deadline is then set."""
        if now >= self._waits_until:
            return False
        self.deadline = min(self._waits_until, now + FINAL_AGAIN_S)
        return True

    def save_at(self) -> float:
        """When the open buffer has been held for long enough."""
        held = self._held_since
        return _NEVER if held is None else held + self._experiment.aggregation.hold_s

    def ends_at(self) -> float:
        """When ``max_minutes`` are over."""
        minutes = self._experiment.experiment.max_minutes
        return _NEVER if minutes is None else self._started_at + minutes * 60 - self._before_s

    def next(self, running: bool, turns: float) -> float:
        """The first of all timers; ``turns`` is that of the open turns."""
        return min(self.deadline, turns, *((self.save_at(), self.ends_at()) if running else ()))
