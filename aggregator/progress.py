"""Progress of a run for its log: versions as they are made, at most a line a second.

The command that shows a run in a live block turns this logger off.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from fluffle.schemas import Evaluation

log = logging.getLogger(__name__)
_EVERY_S = 1.0


class Progress:
    """Logs versions and the end."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: seconds, from any beginning."""
        self._clock = clock
        self._began = clock()
        self._last = self._began - _EVERY_S
        self._since = 0

    def version(
        self, version: int, closed_by: str, counted: int, evaluated: Evaluation | None
    ) -> None:
        """A version is durable; ``counted`` updates are in it and those before it."""
        self._since += 1
        now = self._clock()
        if now - self._last >= _EVERY_S:
            more = f" ({self._since - 1} more before it)" if self._since > 1 else ""
            log.info(
                "version %d%s, closed by %s; %d updates counted%s",
                *(version, more, closed_by, counted, _measured(evaluated)),
            )
            self._last, self._since = now, 0

    def end(self, status: str, version: int, counted: int, evaluated: Evaluation | None) -> None:
        """The run is over."""
        log.info(
            "%s at version %d after %.1f s; %d updates counted%s",
            *(status, version, self._clock() - self._began, counted, _measured(evaluated)),
        )


def _measured(evaluated: Evaluation | None) -> str:
    for name in ("accuracy", "loss"):
        if evaluated is not None and name in evaluated.metrics:
            value = evaluated.metrics[name]
            return f"; {name} {value:.4g} at version {evaluated.version}"
    return ""
