"""Peak memory of a run: this process and its Python children, together."""

from __future__ import annotations

import resource
import threading

import psutil

from fluffle.schemas.sizes import MB

_EVERY_S = 1.0


class MemoryWatch:
    """Samples the resident memory of this process and those children that run our code.

    A RabbitMQ node that we started is not counted: it is the broker's memory, not ours.
    """

    def __init__(self) -> None:
        self._peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()

    @property
    def peak_mb(self) -> float:
        """In MB; exact for a run in one process, sampled every second for several."""
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return round(max(self._peak, own) / MB, 1)

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(_EVERY_S):
            self._peak = max(self._peak, sum(_rss(p) for p in (me, *me.children())))


def _rss(process: psutil.Process) -> int:
    try:
        if process.pid != psutil.Process().pid and "fluffle" not in process.cmdline():
            return 0
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
