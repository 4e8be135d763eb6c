"""Memory, descriptors and processor time of processes, sampled once a second."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Self

import numpy as np
import psutil

MB = 10**6
EVERY_S = 1.0


@dataclass
class Series:
    """One process's samples; lists of equal length."""

    process: psutil.Process
    at_s: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    fds: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    @property
    def peak_mb(self) -> float:
        """The most that was seen."""
        return max(self.rss_mb)

    def between(self, began_s: float, ended_s: float) -> tuple[list[float], list[float]]:
        """When, and how much memory, in this span."""
        pairs = zip(self.at_s, self.rss_mb, strict=True)
        kept = [(at, rss) for at, rss in pairs if began_s <= at <= ended_s]
        return [at for at, _ in kept], [rss for _, rss in kept]

    def sample(self, at_s: float) -> None:
        """Look once. Raises: psutil.Error where the process has ended."""
        with self.process.oneshot():
            rss, cpu = self.process.memory_info().rss / MB, self.process.cpu_times()
            fds, threads = self.process.num_fds(), self.process.num_threads()
        self.at_s.append(at_s)
        self.rss_mb.append(rss)
        self.fds.append(fds)
        self.threads.append(threads)
        self.cpu_s.append(cpu.user + cpu.system)


@dataclass(frozen=True)
class Trend:
    """How a process's memory went, in MB: medians of two quarters of the time, and a line's rise.

    The first quarter is left out: libraries are loaded and functions traced there.
    """

    second: float
    last: float
    peak: float
    per_minute: float

    @property
    def grew(self) -> float:
        """From the second quarter to the last, as a share."""
        return self.last / self.second - 1


def trend_of(at_s: list[float], rss_mb: list[float]) -> Trend:
    """The trend of these samples; seconds of any beginning, at least eight of them."""
    at, rss = np.array(at_s), np.array(rss_mb)
    edges = np.linspace(at[0], at[-1], 5)
    quarters = [rss[(at >= start) & (at <= end)] for start, end in pairwise(edges)]
    later = at >= edges[1]
    slope = np.polyfit(at[later], rss[later], 1)[0] * 60
    second, last = float(np.median(quarters[1])), float(np.median(quarters[3]))
    return Trend(second, last, float(rss.max()), float(slope))


class Watch:
    """Samples all that it was told of, in a thread, until it is closed or they have ended."""

    def __init__(self) -> None:
        self.series: dict[str, Series] = {}
        self._began = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def now_s(self) -> float:
        """Seconds since the watch began."""
        return time.monotonic() - self._began

    def add(self, name: str, pid: int) -> None:
        """From now on this one too."""
        self.series = {**self.series, name: Series(psutil.Process(pid))}

    def cpu_s(self) -> dict[str, float]:
        """Processor time of each so far."""
        return {name: s.cpu_s[-1] for name, s in self.series.items() if s.cpu_s}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        ended: set[str] = set()
        while not self._closed.wait(EVERY_S):
            for name, series in self.series.items():
                if name in ended:
                    continue
                try:
                    series.sample(self.now_s)
                except psutil.Error:
                    ended.add(name)
