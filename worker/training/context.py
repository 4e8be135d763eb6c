"""The context of a client's algorithm in the graph: weights, their start, what it was given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import tensorflow as tf

from fluffle.worker.training.algorithms import registry
from fluffle.worker.training.algorithms.base import Algorithm, Batch, Given
from fluffle.worker.training.schedules import LocalOptimizer


class Context:
    """Handed to ``Algorithm.loss`` and ``Algorithm.gradients`` while the loop is traced."""

    def __init__(
        self,
        weights: Sequence[Any],
        loss_of: Callable[[Batch, Any], Any],
        predict: Callable[[Batch], Any],
        preprocess: Callable[[Any], Any],
    ) -> None:
        #: The model's trainable variables.
        self.weights = weights
        #: ``loss_of(batch, predicted)``: the task's loss, regularisation included.
        self.loss_of = loss_of
        #: Inputs of a batch as the model takes them.
        self.preprocess = preprocess
        self._predict = predict
        self._given: dict[str, list[Any]] = {}

    def __getitem__(self, name: str) -> list[Any]:
        """What ``Algorithm.before`` gave under this name, as tensors."""
        return [variable.value() for variable in self._given[name]]

    def task_loss(self, batch: Batch) -> Any:
        """What plain training minimises: the model's loss on a batch."""
        return self.loss_of(batch, self._predict(batch))

    @cached_property
    def base(self) -> list[Any]:
        """The trainable weights that this training began with, as variables."""
        with tf.init_scope():
            return [_variable(v.value) for v in self.weights]

    # ---- for the trainer

    def give(self, given: Given) -> None:
        """What the graph finds from now on. Raises: ValueError where its shape is another."""
        if self._given and self._given.keys() != given.keys():
            raise ValueError("before() has to give the same names in every turn")
        for name, arrays in given.items():
            if name not in self._given:
                self._given[name] = [_variable(array) for array in arrays]
            for variable, array in zip(self._given[name], arrays, strict=True):
                variable.assign(array)

    def begin(self) -> None:
        """A training begins with the weights as they are; in the graph or outside."""
        if "base" in self.__dict__:
            for base, variable in zip(self.base, self.weights, strict=True):
                base.assign(variable.value)


class Steered:
    """An optimizer that takes what an algorithm makes of the gradients."""

    def __init__(self, optimizer: LocalOptimizer, algorithm: Algorithm, context: Context) -> None:
        self._optimizer = optimizer
        self._algorithm = algorithm
        self._context = context

    def reset(self) -> None:
        self._optimizer.reset()

    def finish(self) -> None:
        self._optimizer.finish()

    def apply(self, gradients: Sequence[Any]) -> None:
        made = registry.trying(
            self._algorithm, lambda: self._algorithm.gradients(gradients, self._context)
        )
        self._optimizer.apply(made)


def _variable(value: Any) -> Any:
    return tf.Variable(value, trainable=False)
