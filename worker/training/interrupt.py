"""Interruption of a training: by somebody who asks now and then whether it shall still go on.

A compiled training runs without looking up; a thread beside it asks, and lets it know.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

#: How often it is asked, in seconds.
ASK_S = 0.05


class TrainingStopped(Exception):
    """A training was given up: what it would have given is of no use any more."""


class Watch:
    """While it is entered: asks ``stop``, and calls ``strike`` once, from a thread of its own."""

    def __init__(self, stop: Callable[[], bool], strike: Callable[[], object]) -> None:
        self._stop = stop
        self._strike = strike
        self._over = threading.Event()
        #: Whether it has struck.
        self.struck = False
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(ASK_S):
            if self._stop():
                self.struck = True
                self._strike()
                return
