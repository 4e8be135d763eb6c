"""LocalTrainer threads that work ahead of the virtual clock, the most urgent job first.

Jobs have the virtual time at which their result is due. At most ``backlog`` finished results lie
about uncollected (each holds a model's size); beyond that only a job that somebody waits for may
start. Which thread runs a job, and when, changes nothing: a training is a function of its inputs.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Job(Generic[T]):
    """Something to be done with a trainer, and later its result."""

    def __init__(self, due: float, number: int, work: Callable[[Any], T]) -> None:
        self.work = work
        self.rank = (due, number)
        self.result: T | None = None
        self.error: BaseException | None = None
        self.done = False
        self.abandoned = False

    def __lt__(self, other: Job[Any]) -> bool:
        return self.rank < other.rank


class Pool:
    """``slots`` threads, each with a trainer of its own that ``make_trainer`` builds."""

    def __init__(self, make_trainer: Callable[[], Any], slots: int, backlog: int = 64) -> None:
        self._make_trainer = make_trainer
        self._backlog = backlog
        self._changed = threading.Condition()
        self._jobs: list[Job[Any]] = []
        self._wanted: Job[Any] | None = None
        self._uncollected = 0
        self._number = 0
        self._closed = False
        #: Seconds of work done, all threads together.
        self.busy_s = 0.0
        self._threads = [
            threading.Thread(target=self._run, name=f"slot-{i}", daemon=True) for i in range(slots)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, due: float, work: Callable[[Any], T]) -> Job[T]:
        """``work(trainer)``, whose result is due at this virtual time."""
        with self._changed:
            self._number += 1
            job = Job(due, self._number, work)
            heapq.heappush(self._jobs, job)
            self._changed.notify_all()
        return job

    def wait(self, job: Job[T]) -> T:
        """The result, once it is there. Raises: what the work raised."""
        with self._changed:
            self._wanted = job
            self._changed.notify_all()
            self._changed.wait_for(lambda: job.done)
            self._wanted = None
            self._uncollected -= 1
            self._changed.notify_all()
        if job.error is not None:
            raise job.error
        result, job.result = job.result, None
        return result  # type: ignore[return-value]  # done without an error: it is there

    def abandon(self, job: Job[Any]) -> None:
        """Nobody waits for this job, or ever will."""
        with self._changed:
            job.abandoned = True
            if job in self._jobs:
                self._jobs.remove(job)
                heapq.heapify(self._jobs)
            elif job.done:
                job.result = None
                self._uncollected -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Let the jobs under way end, and forget the rest."""
        with self._changed:
            self._closed = True
            self._jobs.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        trainer: Any = None
        while (job := self._next()) is not None:
            started = time.perf_counter()
            try:
                trainer = trainer or self._make_trainer()
                job.result = job.work(trainer)
            except BaseException as error:
                job.error = error
            passed = time.perf_counter() - started
            with self._changed:
                self.busy_s += passed
                if job.abandoned:
                    job.result = None
                else:
                    self._uncollected += 1
                job.done = True
                self._changed.notify_all()

    def _next(self) -> Job[Any] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._may_start())
            return None if self._closed else heapq.heappop(self._jobs)

    def _may_start(self) -> bool:
        if not self._jobs:
            return False
        return self._uncollected < self._backlog or self._jobs[0] is self._wanted
