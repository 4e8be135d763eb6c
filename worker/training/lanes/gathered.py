"""Trainings that threads ask for one by one, and that become lanes of common steps.

A step is of one base and one shape. Whoever comes first leads it, the others wait for what it
gives them::

    gathering ─┬─ as many as there are lanes ───────────────────┬─> trained ─> each takes its own
               └─ nobody has joined for a moment, and few train ┘

The real clock decides who shares a step, and nothing but the time it takes depends on that: a step
has always as many lanes as the plan says, idle ones too, and what a lane computes is a function of
its own inputs. An error that is one client's is that client's alone.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fluffle.schemas import Tensors
from fluffle.worker.training.trained import Job, Trained

if TYPE_CHECKING:
    from fluffle.worker.training.lanes.trainer import JaxTrainer

#: After the last that joined, in seconds: threads that come from the same model are as close.
_JOINS_S = 0.01
#: Steps at a time: one computes while another's values are taken from the device.
_AT_ONCE = 2


@dataclass(eq=False)
class _Step:
    base: Tensors
    jobs: list[Job] = field(default_factory=list)
    states: list[Tensors | None] = field(default_factory=list)
    joined_at: float = 0.0
    results: list[Trained | BaseException] | None = None


class Gathered:
    """A trainer for the threads of a process, which share its steps."""

    def __init__(self, trainer: JaxTrainer) -> None:
        self._trainer = trainer
        self._changed = threading.Condition()
        self._gathering: dict[Hashable, _Step] = {}
        self._training = 0

    def initial(self) -> Tensors:
        """As ``LocalTrainer``."""
        return self._trainer.initial()

    def evaluate(
        self, weights: Tensors, by_client: bool = True, state: Tensors | None = None
    ) -> tuple[dict[str, float], int]:
        """As ``LocalTrainer``."""
        return self._trainer.evaluate(weights, by_client, state)

    def train(
        self,
        base: Tensors,
        client: str,
        turn: int,
        epochs: int | None = None,
        state: Tensors | None = None,
        version: int = 0,
        stop: Callable[[], bool] | None = None,
    ) -> Trained:
        """As ``LocalTrainer``; a step that has begun is not stopped."""
        # Two runs may have one plan and one number of version: a base is what lies in one place.
        place = next(iter(base.values())).ctypes.data
        key = (place, version, self._trainer.shape(client, epochs))
        with self._changed:
            step = self._gathering.get(key)
            if step is None:
                step = self._gathering[key] = _Step(base)
            lane = len(step.jobs)
            step.jobs.append(Job(client, turn, epochs, version))
            step.states.append(state)
            step.joined_at = time.monotonic()
            if len(step.jobs) == self._trainer.lanes:
                del self._gathering[key]
                self._changed.notify_all()
            if lane == 0:
                self._gather(key, step)
            else:
                self._changed.wait_for(lambda: step.results is not None)
        if lane == 0:
            self._train(step)
        assert step.results is not None
        result = step.results[lane]
        if isinstance(result, BaseException):
            raise result
        return result

    def _gather(self, key: Hashable, step: _Step) -> None:
        """Until the step begins. The caller holds ``changed``."""
        while self._gathering.get(key) is step or self._training >= _AT_ONCE:
            left = step.joined_at + _JOINS_S - time.monotonic()
            if left <= 0 and self._training < _AT_ONCE:
                del self._gathering[key]
                break
            self._changed.wait(left if left > 0 else None)
        self._training += 1

    def _train(self, step: _Step) -> None:
        results: list[Trained | BaseException]
        started, lanes = time.perf_counter(), self._trainer.lanes
        try:
            found = self._trainer.train_many(step.base, step.jobs, step.states, lanes)
            seconds = time.perf_counter() - started  # each slot has trained for all of it
            results = [
                dataclasses.replace(one, seconds=seconds) if isinstance(one, Trained) else one
                for one in found
            ]
        except BaseException as error:  # all that share a step end with it
            results = [error] * len(step.jobs)
        with self._changed:
            step.results = results
            self._training -= 1
            self._changed.notify_all()
