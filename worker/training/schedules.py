"""Schedules and kept state: optimizers whose rate changes, or that go on where a client stopped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from fluffle.schemas import Tensors
from fluffle.schemas.experiment import TrainingTable
from fluffle.schemas.schedules import Cosine, Schedule, Step
from fluffle.schemas.tensors import group, named
from fluffle.worker.training import optimizers

#: Where a client's state has what its optimizer remembers.
_GROUP = "optimizer"


class LocalOptimizer:
    """A plan's optimizer as a trainer has it: with its schedules, and its state kept or not."""

    def __init__(self, table: TrainingTable, variables: Sequence[Any]) -> None:
        """Raises: UserError."""
        self._table = table
        self._keeps = table.optimizer_state == "keep"
        self._inner = optimizers.make(table, variables)
        self._begins: list[Any] = []
        if self._keeps:
            first = [tf.convert_to_tensor(v) for v in self._inner.variables]
            self._first = [value.numpy() for value in first]
            self._begins = [tf.Variable(value, trainable=False) for value in first]
        self._step = tf.Variable(0, trainable=False)
        self._of_version = tf.Variable(1.0, trainable=False)

    def begin(self, version: int, state: Tensors | None) -> None:
        """Outside the graph: a turn begins, of this version, from what the client kept."""
        if self._table.version_schedule is not None:
            self._of_version.assign(self._table.version_schedule.at(version))
        if self._keeps:
            kept: Sequence[Any] = group(_GROUP, state or {}) or self._first
            for variable, value in zip(self._begins, kept, strict=True):
                variable.assign(value)

    def kept(self) -> Tensors:
        """Outside the graph: what the client keeps."""
        if not self._keeps:
            return {}
        return named(_GROUP, [np.asarray(v) for v in self._inner.variables])

    def reset(self) -> None:
        """In the graph: a training begins."""
        self._inner.reset()
        for variable, value in zip(self._inner.variables, self._begins, strict=False):
            variable.assign(value)
        self._step.assign(0)

    def apply(self, gradients: Sequence[Any]) -> None:
        """In the graph: one step, with the rate that holds for it."""
        table = self._table
        if table.local_schedule is not None or table.version_schedule is not None:
            rate = table.learning_rate * self._of_version
            if table.local_schedule is not None:
                rate *= factor(table.local_schedule, tf.cast(self._step, tf.float32))
                self._step.assign_add(1)
            self._inner.learning_rate = rate
        self._inner.apply(gradients)

    def finish(self) -> None:
        """In the graph: a training ends."""
        self._inner.finish()


def factor(schedule: Schedule, t: Any) -> Any:
    """``schedule.at(t)`` for a tensor."""
    after = t - schedule.warmup
    value: Any = tf.constant(1.0)
    match schedule:
        case Cosine(over=over, floor=floor):
            cosine = tf.cos(math.pi * tf.minimum(1.0, after / over))
            value = floor + (1 - floor) * (1 + cosine) / 2
        case Step(every=every, factor=each):
            value = tf.pow(each, tf.floor(after / every))
    return tf.where(after < 0, (t + 1) / max(1, schedule.warmup), value)
