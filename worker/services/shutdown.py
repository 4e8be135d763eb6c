"""Shutdown of a worker: what is trained is sent, and the broker is not waited for for ever.

    at work ──stop──> leaving ──what is under way is confirmed, or there is nothing──> left
                         └─ not confirmed after LEAVE_S: say so, close the port ─────> left

The broker may be away, out of memory, or its queue full with nobody left to empty it. Closing the
port costs nothing but the work: a turn that is not acked goes back to the broker, and whoever has
it next sends an update with the same id, which counts once.
"""

from __future__ import annotations

import logging
import threading

from fluffle.broker import Envelope, WorkerPort

_log = logging.getLogger(__name__)

#: Who is told to stop waits so long for the confirm of what was done.
LEAVE_S = 10.0


class Shutdown:
    """Submits for the threads of one worker until they are told to stop, and a little longer.

    There is no lock: ``stop`` may run in a signal handler, in the middle of anything here.
    """

    def __init__(self, port: WorkerPort, what: str = "update") -> None:
        """``what`` is sent here, as a person calls it."""
        self.told = threading.Event()
        self._port = port
        self._what = what
        self._unconfirmed: set[object] = set()
        self._gave_up = False

    def stop(self) -> None:
        """Whoever works here shall leave. From any thread, or a signal handler."""
        self.told.set()
        self._limit(frozenset(self._unconfirmed))

    def submit(self, envelope: Envelope) -> None:
        """Returns once it is confirmed. Raises: MessageTooLarge, Closed (given up as well)."""
        this = object()
        self._unconfirmed.add(this)
        if self.told.is_set():
            self._limit(frozenset((this,)))
        try:
            self._port.submit(envelope)
        finally:
            self._unconfirmed.discard(this)

    def _limit(self, these: frozenset[object]) -> None:
        if these:
            timer = threading.Timer(LEAVE_S, self._give_up, (these,))
            timer.daemon = True
            timer.start()

    def _give_up(self, these: frozenset[object]) -> None:
        if these & self._unconfirmed and not self._gave_up:
            self._gave_up = True
            _log.warning(f"stopped before the broker had confirmed the last {self._what}")
            self._port.close()
