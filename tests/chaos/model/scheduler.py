"""Cooperative threads, one at a time, in an order that a seed decides, under a virtual clock.

A task runs production code on a stack of its own (a greenlet) until it waits, or passes a point
where the operating system could have stopped it. Exactly one runs at a time and nothing depends
on real time, so the same seed gives the same interleaving, always. The clock moves only when
nobody can run; sometimes a little too far, so that timers and messages meet.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from random import Random

from greenlet import getcurrent, greenlet


class Crash(KeyboardInterrupt):
    """The process that this is raised in ends here, as by SIGKILL."""


class Task(greenlet):  # type: ignore[misc]  # greenlet has no type for itself
    """One thread of a process."""

    def __init__(self, scheduler: Scheduler, name: str, owner: object, body: Callable[[], None]):
        super().__init__(self._main, scheduler.hub)
        self.name = name
        self.owner = owner
        self.crashed = False
        #: Runs on at this time, or earlier where something stirs and it wants to know.
        self.wake = 0.0
        self.frozen_until = 0.0
        self.seen: int | None = None
        self._body = body

    def _main(self) -> None:
        try:
            self._body()
        except Crash:
            self.crashed = True

    def ready(self, now: float, stirred: int) -> bool:
        """Whether it can go on."""
        if now < self.frozen_until:
            return False
        return now >= self.wake or self.seen not in (None, stirred)


def current() -> Task | None:
    """The task that runs; None in the scheduler's own thread."""
    running = getcurrent()
    return running if isinstance(running, Task) else None


class Scheduler:
    """Runs tasks and timers. All of it is a function of ``order``."""

    def __init__(self, order: Random) -> None:
        self.now = 0.0
        self.steps = 0
        self.tasks: list[Task] = []
        self.hub = getcurrent()
        self._order = order
        self._stirred = 0
        self._burst = 0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    # ---- for tasks

    def pause(self) -> None:
        """Others may run here; mostly in bursts, as threads do."""
        if self._burst > 0:
            self._burst -= 1
            return
        task = self._me()
        task.wake, task.seen = 0.0, None
        self.hub.switch()

    def sleep(self, seconds: float) -> None:
        """Go on when so much time has passed."""
        task = self._me()
        task.wake, task.seen = self.now + seconds, None
        self.hub.switch()

    def wait(self, until: float) -> None:
        """Go on when something stirs, and at that time at the latest."""
        task = self._me()
        task.wake, task.seen = until, self._stirred
        self.hub.switch()

    def freeze(self, seconds: float) -> None:
        """Stop as by SIGSTOP, and go on later."""
        self._me().frozen_until = self.now + seconds
        self._burst = 0
        self.pause()

    # ---- for all

    def stir(self) -> None:
        """Something has changed that others may wait for."""
        self._stirred += 1

    def at(self, seconds: float, act: Callable[[], None]) -> None:
        """Do this in so many seconds."""
        heapq.heappush(self._timers, (self.now + seconds, next(self._numbers), act))

    def spawn(self, name: str, owner: object, body: Callable[[], None]) -> Task:
        """A thread that starts when its turn comes."""
        task = Task(self, name, owner, body)
        self.tasks.append(task)
        return task

    def step(self) -> Task | None:
        """Let one task go on until it waits or pauses: that task; None when nothing ever can."""
        while True:
            while self._timers and self._timers[0][0] <= self.now:
                heapq.heappop(self._timers)[2]()
            now, stirred = self.now, self._stirred
            ready = [task for task in self.tasks if task.ready(now, stirred)]
            if ready:
                break
            if not self._advance():
                return None
        self.steps += 1
        task = ready[int(self._order.random() * len(ready))]
        self._burst = int(-math.log(1.0 - self._order.random()) * 3)
        task.switch()
        if task.dead:
            self.tasks.remove(task)
        return task

    def end(self, tasks: list[Task]) -> None:
        """End these where they stand. Called by the scheduler's own thread."""
        for task in tasks:
            if task:  # begun, and not over
                task.throw(Crash)
            if task in self.tasks:
                self.tasks.remove(task)

    def _advance(self) -> bool:
        times = [max(task.wake, task.frozen_until) for task in self.tasks]
        if self._timers:
            times.append(self._timers[0][0])
        if not times:
            return False
        late = self._order.random()
        self.now = max(self.now, min(times)) + (late if late < 0.3 else 0.0)
        return True

    def _me(self) -> Task:
        task = current()
        assert task is not None, "only a task can wait"
        return task
